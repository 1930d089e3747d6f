"""What learning has reached so far, in a folder, so that an interrupted run goes on from there."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

Saved = tuple[dict[str, Tensor], dict[str, Any]]


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
        # copies, because a file cannot hold one tensor under two names
        contiguous = {
            key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()
        }
        words = json.dumps(dict(facts))
        metadata = {"key": self.key, "facts": words, "digest": _digest(contiguous, words)}
        save_file(contiguous, scratch, metadata=metadata)
        scratch.replace(self.folder / f"{name}.safetensors")

    def load(self, name: str) -> Saved | None:
        """Return what was saved under a name, or None when there is nothing, or nothing whole."""
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            if metadata["key"] != self.key:
                return None
            tensors = load_file(path)
            whole = _digest(tensors, metadata["facts"]) == metadata["digest"]
            return (tensors, json.loads(metadata["facts"])) if whole else None
        except (SafetensorError, OSError, TypeError, KeyError, ValueError):
            return None  # as good as none: the work is done again


def _digest(tensors: Mapping[str, Tensor], words: str) -> str:
    # a machine that lost its power may leave a file of the right length that holds zeros
    digest = hashlib.sha256(words.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
