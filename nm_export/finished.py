"""Whether a folder is what a recipe would give: `stages.json` in it says what each stage has read and written."""

import json
from collections.abc import Mapping
from pathlib import Path

from nm_export.digests import digest, known_sha256
from nm_export.errors import UserError
from nm_export.inputs import Inputs
from nm_export.journal import Entry, differences
from nm_export.recipe import Recipe
from nm_export.whole_file import write_whole

STAGES_FILE = "stages.json"


def write_stages(folder: Path, entries: Mapping[str, Entry], prefix: str) -> None:
    """Write what the stages have read and written into the folder that they made, without times and results.

    Args:
        folder: the folder.
        entries: of a journal, in the order of the stages.
        prefix: how the paths of files in `folder` begin in the journal. Other files were of use in between only.
    """
    stages = {name: {"read": entry.read, "wrote": entry.wrote} for name, entry in entries.items()}
    write_whole(folder / STAGES_FILE, json.dumps({"format": 1, "folder": prefix, "stages": stages}, indent=2) + "\n")


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
    try:
        known = json.loads((folder / STAGES_FILE).read_text(encoding="utf-8"))
        return {name: Entry(entry["read"], entry["wrote"]) for name, entry in known["stages"].items()}, known["folder"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}, ""
