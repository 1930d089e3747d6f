"""Whether a folder is what a recipe would give: `stages.json` in it says what each stage has read and written."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nm_export.digests import digest, file_sha256, known_sha256
from nm_export.errors import UserError
from nm_export.inputs import Inputs
from nm_export.journal import Entry, differences
from nm_export.recipe import Recipe
from nm_export.whole_file import write_whole

STAGES_FILE, PICTURES = "stages.json", "pictures"
EDITED = ("README.md", "report.html", "measurements.json")
"""Files that may change after they were written, as pictures may."""


@dataclass(frozen=True)
class Written:
    """A file as it was when it was written.

    Attributes:
        size: bytes; None in folders of versions that did not write it down.
        sha256: None for files that may change: `EDITED`.
    """

    size: int | None
    sha256: str | None


def write_stages(folder: Path, entries: Mapping[str, Entry], prefix: str) -> None:
    """Write what the stages have read and written into the folder that they made, without times and results.

    Args:
        folder: the folder, with all its files.
        entries: of a journal, in the order of the stages.
        prefix: how the paths of files in `folder` begin in the journal. Other files were of use in between only.
    """
    stages = {name: {"read": entry.read, "wrote": entry.wrote} for name, entry in entries.items()}
    _write(folder, prefix, stages)


def record_written(folder: Path, stage: str, paths: Iterable[Path] | None = None) -> None:
    """Write into `stages.json` what was written without a recipe, by which publishing tells whether it is all there.

    Args:
        folder: a model folder. What its `stages.json` says of other stages stays.
        stage: a word for what wrote the files, for example `save`; its earlier files are forgotten.
        paths: the files, in `folder`; all that it holds by default. Those that may change are known by name only.
    """
    known = _content(folder)
    prefix, stages = (known["folder"], known["stages"]) if known else ("", {})
    names = _names(folder) if paths is None else sorted(path.relative_to(folder).as_posix() for path in paths)
    wrote = {f"{prefix}{name}": file_sha256(folder / name) for name in names if not may_change(name)}
    others = {
        other: {**entry, "wrote": {name: sha256 for name, sha256 in entry["wrote"].items() if name not in wrote}}
        for other, entry in stages.items()
    }
    _write(folder, prefix, {**others, stage: {"read": {}, "wrote": wrote}})


def written_files(folder: Path) -> dict[str, Written]:
    """What `stages.json` says of the files of a folder, by their path in it; empty if the folder has none.

    Raises:
        UserError: it cannot be read.
    """
    known = _content(folder)
    if known is None:
        if (folder / STAGES_FILE).exists():
            raise UserError(f"{folder / STAGES_FILE} is damaged; copy the folder again, or export the model again.")
        return {}
    prefix, sizes = known["folder"], known.get("sizes", {})
    files = {name: Written(None, None) for name in known.get("edited", ())}
    for entry in known["stages"].values():
        for name, sha256 in entry["wrote"].items():
            if name.startswith(prefix):
                path = name.removeprefix(prefix)
                files[path] = Written(sizes.get(path), sha256)
    return files


def may_change(name: str) -> bool:
    """Whether a file, by its path in the folder, may be edited after it was written."""
    return name in EDITED or name.startswith(f"{PICTURES}/")


def made_by(folder: Path, recipe: Recipe) -> bool:
    """Whether a run of this very recipe has finished `folder`; what it read may have changed since."""
    entries, _ = _read(folder)
    return "record" in entries and entries["record"].read.get("recipe") == digest(recipe.to_dict())


def is_finished(folder: Path, inputs: Inputs) -> bool:
    """Whether `folder` was made from these inputs, and every file that counts is as it was written.

    Raises:
        UserError: it was made by the recipe, but no longer is what a run would give.
    """
    entries, prefix = _read(folder)
    if "record" not in entries or entries["record"].read.get("recipe") != inputs.of("record", entries)["recipe"]:
        return False
    again = "pass --overwrite to make it again"
    for name in inputs.stages:
        if name not in entries:
            raise UserError(f"{folder} was made by this recipe without the stage {name}; {again}.")
        changed = differences(entries[name].read, inputs.of(name, entries))
        if changed:
            raise UserError(f"{folder} was made by this recipe, but {changed} since; {again}.")
    if set(entries) - set(inputs.stages):
        raise UserError(
            f"{folder} holds more than was asked for ({', '.join(set(entries) - set(inputs.stages))}); {again}."
        )
    for entry in entries.values():
        for name, sha256 in entry.wrote.items():
            path = folder / name.removeprefix(prefix)
            if name.startswith(prefix) and (not path.is_file() or known_sha256(path) != sha256):
                raise UserError(f"{path} is not as it was written; {again}.")
    return True


def _read(folder: Path) -> tuple[dict[str, Entry], str]:
    known = _content(folder)
    if known is None:
        return {}, ""
    return {name: Entry(entry["read"], entry["wrote"]) for name, entry in known["stages"].items()}, known["folder"]


def _content(folder: Path) -> dict[str, Any] | None:
    """What `stages.json` holds; None where there is none, or one that means nothing."""
    try:
        known = json.loads((folder / STAGES_FILE).read_text(encoding="utf-8"))
        for entry in known["stages"].values():
            if not (isinstance(entry["read"], dict) and isinstance(entry["wrote"], dict)):
                return None
        if not (isinstance(known["folder"], str) and isinstance(known.get("sizes", {}), dict)):
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return dict(known)


def _write(folder: Path, prefix: str, stages: Mapping[str, Any]) -> None:
    wrote = {name for entry in stages.values() for name in entry["wrote"] if name.startswith(prefix)}
    paths = sorted(name.removeprefix(prefix) for name in wrote)
    content = {
        "format": 1,
        "folder": prefix,
        "stages": stages,
        "sizes": {path: (folder / path).stat().st_size for path in paths if (folder / path).is_file()},
        "edited": [name for name in EDITED if (folder / name).is_file()],
    }
    write_whole(folder / STAGES_FILE, json.dumps(content, indent=2) + "\n")


def _names(folder: Path) -> list[str]:
    """The files of a folder by their path in it, without hidden ones and `stages.json`."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    hidden = (".", "__pycache__")
    return sorted(
        name.as_posix()
        for name in names
        if name.as_posix() != STAGES_FILE and not any(part.startswith(hidden) for part in name.parts)
    )
