"""What a stranger reads first: the model card, its pictures, and the same as one HTML page."""

from nm_export.card.write import refresh_card, write_card

__all__ = ["refresh_card", "write_card"]
