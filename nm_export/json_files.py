"""JSON files: those of strangers are read within limits, or refused in one sentence; those of users appear whole."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from nm_export.errors import UserError
from nm_export.whole_file import write_whole

MAX_BYTES = 16_000_000
MAX_DEPTH = 100


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is larger than `max_bytes`, cannot be read, is not UTF-8 or not JSON, gives a key twice, holds a
            NaN, or is nested deeper than `MAX_DEPTH`.
    """
    return parse_json(read_bounded(path, max_bytes), str(path))


def read_json_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file; raises what `read_json` does, and UserError for any other value."""
    value = read_json(path, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {_kind(value)} where a JSON object was expected; is it the right file?")
    return value


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a file that is not larger than `max_bytes`; raises as `read_json` does."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file")
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > max_bytes:
        raise UserError(f"{path} is larger than {max_bytes / 1e6:,.0f} MB, too large for such a file; is it damaged?")
    return content


def parse_json(content: bytes, origin: str) -> Any:
    """Return the value of JSON text; `origin` names it in messages. Raises UserError as `read_json` does."""
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise UserError(f"{origin} is not UTF-8 text (byte {error.start}); is it damaged?") from error
    except RecursionError as error:
        raise UserError(f"{origin} is nested deeper than {MAX_DEPTH} levels; is it the right file?") from error
    except ValueError as error:
        raise UserError(f"{origin} is not valid JSON: {str(error).partition(';')[0]}") from error
    if _is_deep(value):
        raise UserError(f"{origin} is nested deeper than {MAX_DEPTH} levels; is it the right file?")
    return value


def check_json_target(path: Path) -> None:
    """Raise a UserError, before anything is measured, where `--json` names no file that can be written."""
    if path.is_dir():
        raise UserError(f"--json: {path} is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--json: there is no folder {path.absolute().parent}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:60]!r} is given twice")
    return values


def _constant(word: str) -> float:
    # Python's JSON knows Infinity and NaN; the first is a time limit in some configurations, the second no value at all
    return math.inf if word == "Infinity" else -math.inf if word == "-Infinity" else _no_number()


def _no_number() -> NoReturn:
    raise ValueError("NaN is no number")


def _is_deep(value: Any) -> bool:
    level, depth = [value], 0
    while level:
        depth += 1
        inner = (item for item in level if isinstance(item, (dict, list)))
        level = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
        if depth > MAX_DEPTH:
            return True
    return False


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(type(value), "a number")
