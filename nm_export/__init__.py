"""nm_export."""
