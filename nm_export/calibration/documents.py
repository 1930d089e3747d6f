"""Datasets -> documents: local files, the built-in text, and whatever `datasets` loads.

Local files and the built-in text are cut once, at a fixed place, into the splits `train` (the first 80 %) and
`validation` (the rest), so that what calibration sees and what evaluation measures never overlap.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from nm_export.calibration.columns import Render, check_characters, text_column, text_of
from nm_export.calibration.hub_documents import hub_documents
from nm_export.calibration.text_files import content, explained, in_split, kind, lines
from nm_export.errors import UserError
from nm_export.recipe import TextSection

BUILTIN = "builtin:python-docs"
LOCAL_SPLITS = ("train", "validation", "all")

_CHUNK_CHARACTERS = 1 << 16
_LARGEST_JSON = 256_000_000
"""Bytes of a .json file that are read as one value; larger ones have to be JSON lines."""


def load_text(section: TextSection, render: Render | None = None) -> Iterator[str]:
    """Documents of the section's dataset and split, one string each, in a fixed order; empty ones are left out.

    Whatever file exists is text, except that `.jsonl`, `.json` and `.parquet` are tables. Line ends become `\\n`.

    Args:
        section: which text.
        render: what makes a text of a chat; None refuses chats.

    Raises:
        UserError: here or while iterating: the file, split or column does not exist or cannot be read.
    """
    path = Path(section.dataset).expanduser()
    if section.dataset.startswith("builtin:"):
        documents = _builtin(section)
    elif is_at_hand(section):
        documents = _local(path, section, render)
    else:
        documents = hub_documents(section, render)
    return (text for text in documents if text.strip())


def is_at_hand(section: TextSection) -> bool:
    """Whether the text is a local file, or means to be one, or comes with Python: no network is needed for it."""
    path = Path(section.dataset).expanduser()
    return section.dataset.startswith("builtin:") or kind(path) in _READERS or _exists(path)


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no path at all: too long
        return False


def _local(path: Path, section: TextSection, render: Render | None) -> Iterator[str]:
    _check_local(section)
    if not path.is_file():
        raise UserError(f"{section.key}.dataset: there is no file {path} (looked from {Path.cwd()})")
    with explained(path, f"{section.key}.dataset"):
        yield from _READERS.get(kind(path), _text_file)(path, section, render)


def _check_local(section: TextSection) -> None:
    for key in ("name", "revision"):
        if getattr(section, key) is not None:
            raise UserError(f"{section.key}.{key} is for Hub datasets, and {section.dataset} is none; leave it out")
    if section.split not in LOCAL_SPLITS:
        raise UserError(
            f"{section.key}.split is {section.split!r}; {section.dataset} has the splits {', '.join(LOCAL_SPLITS)}"
        )


def _builtin(section: TextSection) -> Iterator[str]:
    if section.dataset != BUILTIN:
        raise UserError(f"{section.key}.dataset: there is no {section.dataset}; the built-in text is {BUILTIN}")
    _check_local(section)
    topics = _python_docs()
    total = sum(len(paragraph) for topic in topics for paragraph in topic)
    start = 0
    for topic in topics:
        kept = []
        for paragraph in topic:
            if in_split(start / total, section.split):
                kept.append(paragraph)
            start += len(paragraph)
        yield "\n\n".join(kept)


def _python_docs() -> list[list[str]]:
    """Topics of Python's language reference as lists of paragraphs; each paragraph is there once.

    Topics quote each other ("compound" holds all of "if" and "for"), so the splits would overlap if repeats stayed.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UserError(f"{BUILTIN} is missing: this Python lacks pydoc_data; name another dataset") from error
    seen: set[str] = set()
    documents = []
    for _, topic in sorted(topics.items()):
        kept = []
        for paragraph in re.split(r"\n\s*\n", topic):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                kept.append(paragraph)
        documents.append(kept)
    return documents


def _text_file(path: Path, section: TextSection, _: Render | None) -> Iterator[str]:
    """Chunks of whole lines, some 64 KiB each."""
    chunk: list[str] = []
    size = 0
    for line in lines(path, section.split, f"{section.key}.dataset"):
        chunk.append(line.text.replace("\r\n", "\n").replace("\r", "\n"))
        size += len(line.text)
        if size >= _CHUNK_CHARACTERS:
            yield "".join(chunk)
            chunk, size = [], 0
    yield "".join(chunk)


def _json_lines(path: Path, section: TextSection, render: Render | None) -> Iterator[str]:
    """The text of one JSON object a line."""
    for line in lines(path, section.split, f"{section.key}.dataset", whole=True):
        if not line.text.strip():
            continue
        try:
            row = json.loads(line.text)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            hint = "" if kind(path) == ".json" else "; a file that is one JSON value as a whole is named .json"
            raise UserError(
                f"{section.key}.dataset: {path} has a line that is not a JSON object: {line.text.strip()[:60]!r}, line "
                f"{line.number}{hint}"
            )
        yield text_of(row, section, render, f"line {line.number}")


def _json_file(path: Path, section: TextSection, render: Render | None) -> Iterator[str]:
    """The texts of a list of JSON objects, of one object, or of a list of strings; else JSON lines."""
    whole = content(path, _LARGEST_JSON)
    try:
        value = None if whole is None else json.loads(whole.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        if whole is None or b"\n" in whole.strip():
            yield from _json_lines(path, section, render)
            return
        raise UserError(f"{section.key}.dataset: {path} is no list of JSON objects; write one object a line, as .jsonl")
    for number, row in enumerate(value):
        if not isinstance(row, dict | str):
            raise UserError(
                f"{section.key}.dataset: {path} holds {type(row).__name__} as item {number + 1}, not a JSON object"
            )
        if in_split(number / len(value), section.split):
            place = f"item {number + 1}"
            yield (
                check_characters(row, section, place) if isinstance(row, str) else text_of(row, section, render, place)
            )


def _parquet(path: Path, section: TextSection, render: Render | None) -> Iterator[str]:
    """The text of one row after the other; the cut is a row number."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f'{section.key}.dataset: {path} needs pyarrow; pip install "nm_export[data]"') from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        column = text_column(section, columns)
        row, total = 0, file.metadata.num_rows
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            for value in batch.column(0).to_pylist():
                if in_split(row / total, section.split):
                    yield text_of({column: value}, section, render, f"row {row + 1}")
                row += 1
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{section.key}.dataset: {path} is not a readable parquet file: {reason}") from error


_READERS = {".txt": _text_file, ".jsonl": _json_lines, ".json": _json_file, ".parquet": _parquet}
