"""The table of docs/results.md: every method and pattern on one model, one protocol. `python -m nm_export.results`."""
