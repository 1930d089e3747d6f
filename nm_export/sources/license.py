"""The terms of a model, from the card beside it."""

from pathlib import Path

import yaml
from huggingface_hub import metadata_load

_FIELDS = ("license", "license_name", "license_link")
_LARGEST = 1_000_000  # bytes; cards are a thousandth of a model, and this one is somebody else's


def read_license(folder: Path) -> dict[str, str]:
    """Return `license`, `license_name` and `license_link` as far as README.md names them; nothing where it does not."""
    card = folder / "README.md"
    try:
        if card.stat().st_size > _LARGEST:
            return {}
        metadata = metadata_load(card) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return {field: metadata[field] for field in _FIELDS if isinstance(metadata.get(field), str)}
