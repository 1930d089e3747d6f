"""Before a folder is published: is every file there, and as it was written?

A copy that was cut, or a file that somebody removed, would make a repository that cannot be loaded.
`stages.json` says which files were written; where it does not, what the files themselves name must be there.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from nm_export import modeling
from nm_export.card.marks import read_card
from nm_export.digests import file_sha256
from nm_export.errors import UserError
from nm_export.finished import Written, written_files
from nm_export.publishing.contents import File
from nm_export.sources.checkpoint import stored_tensors, weight_files

HASHED_AT_ONCE = 10_000_000
"""Bytes up to which files are read before the Hub is asked anything; the hashes of larger ones are known later."""

_IMAGE = re.compile(r"!\[[^]]*\]\(([^()\s]+)\)")


def check_whole(folder: Path) -> None:
    """Raise a UserError unless every file is there, as long as it was and, if it is small, as it was written.

    README.md, report.html, measurements.json and pictures may have been edited; they must be there.
    Takes about a second.
    """
    written = written_files(folder)
    wrong = [f"{name} {what}" for name, file in written.items() if (what := _difference(folder / name, file))]
    wrong += [f"{name} is missing" for name in _named(folder) if name not in written and not (folder / name).is_file()]
    if wrong:
        raise not_whole(folder, wrong)
    weights = _weights(folder)
    stored_tensors(file for file in weights if file.name not in written)
    for graph in sorted((folder / "onnx").glob("*.onnx")):
        if f"onnx/{graph.name}" not in written:
            _check_graph(folder, graph)


def check_hashes(folder: Path, contents: Mapping[str, File]) -> None:
    """Raise a UserError if a file to be published, whose hash is known by now, is not as it was written."""
    written = written_files(folder)
    wrong = [
        f"{name} is not as it was written"
        for name, file in written.items()
        if file.sha256 is not None and name in contents and contents[name].sha256 != file.sha256
    ]
    if wrong:
        raise not_whole(folder, wrong)


def not_whole(folder: Path, wrong: list[str]) -> UserError:
    """The sentence about a folder in which files are missing or have changed.

    Args:
        folder: the folder.
        wrong: what is wrong with each file, beginning with its name.
    """
    more = f" (and so on, {len(wrong)} files in all)" if wrong[1:] else ""
    remedy = "copy the folder again, or write it again with --overwrite"
    if all(entry.startswith("onnx/") for entry in wrong) and not any((folder / "onnx").glob("*.onnx")):
        remedy += "; `nm-export convert FOLDER OUTPUT --skip-onnx` makes a folder without ONNX from a whole one"
    return UserError(f"{folder} is not what was written: {wrong[0]}{more}. Nothing is published; {remedy}.")


def _difference(path: Path, written: Written) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if written.size is not None and size != written.size:
        return f"has {size:,} bytes instead of {written.size:,}"
    if written.sha256 is not None and size <= HASHED_AT_ONCE and file_sha256(path) != written.sha256:
        return "is not as it was written"
    return None


def _named(folder: Path) -> Iterator[str]:
    """Files that the folder cannot do without, or that its card shows, by their path in it."""
    yield "config.json"
    yield from sorted(
        path.name for path in Path(modeling.__file__).parent.glob("*_nm_sparse.py") if _used(folder, path)
    )
    card = folder / "README.md"
    if card.is_file():
        try:
            text = card.read_text(encoding="utf-8-sig")
        except ValueError as error:
            raise UserError(f"{card} is not a UTF-8 text file ({error}).") from error
        read_card(text, str(card))  # the Hub takes no metadata that are no YAML
        for target in _IMAGE.findall(text):
            if "://" not in target and not target.startswith(("/", "#", "data:")):
                yield unquote(target)


def _used(folder: Path, code: Path) -> bool:
    """Whether the folder's code imports a file; every folder has all but one that versions before it do without."""
    model = folder / "modeling_nm_sparse.py"
    return code.name == model.name or not model.is_file() or code.stem in model.read_text(encoding="utf-8")


def _weights(folder: Path) -> list[Path]:
    """The weight files of a folder, of which none is missing."""
    base = _config(folder).get("base_weights")
    if base is None:
        return weight_files(folder, str(folder))
    new: dict[str, Any] = base["new_files"]
    wrong = [
        f"{name} {what}"
        for name, file in new.items()
        if (what := _difference(folder / name, Written(file["size"], file["sha256"])))
    ]
    if wrong:
        raise not_whole(folder, wrong)
    return [folder / name for name in new]


def _config(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read ({error}); copy the folder again.") from error
    return content


def _check_graph(folder: Path, graph: Path) -> None:
    """Raise a UserError unless the files that hold the weights of a graph are there and long enough."""
    from nm_export.onnx.extras import require

    require("onnx", "onnx")
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as error:  # of the library that reads it
        raise not_whole(folder, [f"onnx/{graph.name} cannot be read ({type(error).__name__})"]) from error
    ends: dict[str, int] = {}
    for tensor in [*model.graph.initializer, *(tensor for f in model.functions for tensor in _constants(f))]:
        if uses_external_data(tensor):
            place = ExternalDataInfo(tensor)
            ends[place.location] = max(ends.get(place.location, 0), (place.offset or 0) + (place.length or 0))
    wrong = []
    for name, end in sorted(ends.items()):
        path = graph.parent / name
        if not path.is_file():
            wrong.append(f"onnx/{name} is missing")
        elif path.stat().st_size < end:
            wrong.append(f"onnx/{name} has {path.stat().st_size:,} bytes of {end:,} at least")
    if wrong:
        raise not_whole(folder, wrong)


def _constants(function: Any) -> Iterator[Any]:
    for node in function.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
