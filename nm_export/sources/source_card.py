"""What the card beside a model says of it: its terms, languages, and what it was made from."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

_TERMS = ("license", "license_name", "license_link")
_LARGEST = 1_000_000  # bytes; cards are a thousandth of a model, and this one is somebody else's
_MOST = 50  # words of one key
_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_WORD = re.compile(r"[^\x00-\x1f]{1,100}")
_CODE = re.compile(r"[a-z]{2,3}|code|multilingual")
_LISTS = {"language": _CODE, "tags": _WORD, "datasets": _WORD, "base_model": _ID}
_FORMATS = frozenset(
    (
        "adapter",
        "awq",
        "exl2",
        "ggml",
        "gguf",
        "gptq",
        "lora",
        "mlx",
        "onnx",
        "openvino",
        "peft",
        "pytorch",
        "safetensors",
    )
)
"""Tags that say how weights are stored, which is otherwise in what is exported."""


def read_license(folder: Path) -> dict[str, str]:
    """Return `license`, `license_name` and `license_link` as far as README.md names them; nothing where it does not."""
    metadata = _metadata(folder)
    return {field: metadata[field] for field in _TERMS if isinstance(metadata.get(field), str)}


def read_description(folder: Path) -> dict[str, Any]:
    """Return what README.md says of a model besides its terms, as far as it holds for a model that is made from it.

    `language`, `tags`, `datasets` and `base_model` as lists of words, `pipeline_tag` as one. Models are Hub ids, and no
    word is a path: training programs write folders of their machine into cards.
    """
    metadata = _metadata(folder)
    found: dict[str, Any] = {}
    for key, form in _LISTS.items():
        value = metadata.get(key)
        words = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        kept = [word for word in words[:_MOST] if isinstance(word, str) and form.fullmatch(word) and _is_public(word)]
        if key == "tags":
            kept = [word for word in kept if word.lower() not in _FORMATS]
        if kept:
            found[key] = kept
    task = metadata.get("pipeline_tag")
    if isinstance(task, str) and re.fullmatch(r"[a-z0-9-]{1,60}", task):
        found["pipeline_tag"] = task
    return found


def _is_public(word: str) -> bool:
    return not word.startswith(("/", ".", "~")) and "\\" not in word and not Path(word).exists()


def _metadata(folder: Path) -> dict[str, Any]:
    card = folder / "README.md"
    try:
        if card.stat().st_size > _LARGEST:
            return {}
        return dict(metadata_load(card) or {})
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return {}
