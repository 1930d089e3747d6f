"""Data of lm-eval tasks from files of JSON lines. Task files name `read_jsonl` as their `custom_dataset`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nm_export.errors import UserError


def read_jsonl(
    *, file: str, keys: Sequence[str] = (), task_data: str | Path | None = None, **metadata: Any
) -> dict[str, Any]:
    """Return the rows of a file as the dataset `{"validation": rows}`.

    Args:
        file: one JSON object a line, UTF-8; relative to `task_data`.
        keys: what every object must have.
        task_data: the folder given with --task-data; without it, the current one.
        **metadata: the rest of the task's metadata, which the harness passes on.

    Raises:
        UserError: the file is missing, or a line of it is not such an object.
    """
    from datasets import Dataset

    path = Path(task_data or ".").expanduser() / file
    if not path.is_file():
        hint = "" if task_data else "; name its folder with --task-data"
        raise UserError(f"there is no file {path}{hint}")
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                rows.append(_row(line, keys, f"{path}, line {number}"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not rows:
        raise UserError(f"{path} holds no examples")
    return {"validation": Dataset.from_list(rows)}


def _row(line: str, keys: Sequence[str], where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or not set(keys) <= set(row):
        raise UserError(f"{where} needs the keys {', '.join(keys)}")
    return row
