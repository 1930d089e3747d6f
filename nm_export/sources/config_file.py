"""config.json, before transformers builds anything from it: no absurd numbers, no code from elsewhere."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nm_export.errors import UserError
from nm_export.json_files import read_json_object

MAX_LAYERS = 1_000
MAX_LABELS = 100_000
MAX_SIZE = 10**9
MAX_ENTRIES = 100_000

_LAYERS = re.compile(r"(num|n)_(\w+_)?layers?|block_count")
_SIZES = re.compile(r"(num|n|max)_\w+|\w+_(size|dim|length|count)")
_MAY_BE_INFINITE = "time_step_limit"
_IMPLEMENTATION = re.compile(r"_?(attn|experts)_implementation(_internal)?")


def check_config_file(path: Path) -> dict[str, Any]:
    """Return the values of a config.json that may be handed to transformers.

    Raises:
        UserError: it is no JSON object; it has absurd numbers; or it asks for an attention kernel of the Hub or for a
            weight file of its own choice.
    """
    values = read_json_object(path)
    for key, value in _numbers(values, str(path)):
        check_number(key, value, str(path))
    for key, value in values.items():
        if _IMPLEMENTATION.fullmatch(key) and "/" in str(value):
            raise UserError(f"{path}: {key} asks for code from {str(value)[:80]!r}, which is not run; remove the key")
    if "transformers_weights" in values:
        raise UserError(f"{path}: transformers_weights is not read; name the weights model.safetensors")
    return values


def check_number(key: str, value: float, origin: str) -> None:
    """Raise UserError for a number of a configuration that no model has: `origin`, the file, gives it to `key`."""
    word = key.rpartition(".")[2]
    if isinstance(value, float):
        if not math.isfinite(value) and word != _MAY_BE_INFINITE:
            raise UserError(f"{origin}: {key[:80]} is {value}; it must be a number")
        if value > MAX_SIZE and _SIZES.fullmatch(word) and not word.startswith("model_max"):
            raise UserError(f"{origin}: {key[:80]} is {value:g}, which no model has")
        return
    shown = f"{value:,}" if abs(value) < 10**20 else "a number of more than 20 digits"
    limit = 2**63 - 1
    if word == "num_labels":
        limit = MAX_LABELS
    elif _LAYERS.fullmatch(word):
        limit = MAX_LAYERS
    elif _SIZES.fullmatch(word):
        limit = MAX_SIZE
    sized = limit < 2**63 - 1
    if value > limit or value < (0 if sized else -(2**63)):
        raise UserError(f"{origin}: {key[:80]} is {shown}, which no model has")


def _numbers(value: Any, origin: str, key: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a JSON value with the keys that lead to them. It is not nested deeply: `read_json` saw to that."""
    if isinstance(value, (dict, list)) and len(value) > MAX_ENTRIES:
        raise UserError(f"{origin}: {key[:80] or 'the file'} has {len(value):,} entries, which no model has")
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, origin, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, origin, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value
