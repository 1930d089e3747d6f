"""What learning has reached so far, in a folder, so that an interrupted run goes on from there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


class Checkpoints:
    """Named states in a folder; each file appears whole or not at all.

    Args:
        folder: folder for them, made when something is saved; None keeps nothing.
        key: of everything that decides the result (model, text, recipe). What was saved with another key is not found.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder, self.key = folder, key

    def save(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep tensors and JSON values under a name, instead of what was there."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / f".{name}.safetensors"
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, scratch, metadata={"key": self.key, "facts": json.dumps(dict(facts))})
        scratch.replace(self.folder / f"{name}.safetensors")

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what was saved under a name, or None when there is nothing, or nothing readable."""
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            return (load_file(path), json.loads(metadata["facts"])) if metadata["key"] == self.key else None
        except (SafetensorError, OSError, TypeError, KeyError, ValueError):
            return None  # as good as none: the work is done again
