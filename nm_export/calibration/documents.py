"""Datasets -> documents: local files, the built-in text, and whatever `datasets` loads.

Local files and the built-in text are cut once, at a fixed place, into the splits `train` (the first 80 %) and
`validation` (the rest), so that what calibration sees and what evaluation measures never overlap.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from nm_export.calibration.columns import missing_column, text_of
from nm_export.calibration.hub_documents import hub_documents
from nm_export.errors import UserError
from nm_export.recipe import TextSection

BUILTIN = "builtin:python-docs"
TRAIN_SHARE = 0.8
LOCAL_SPLITS = ("train", "validation", "all")

_CHUNK_CHARACTERS = 1 << 16


def load_text(section: TextSection) -> Iterator[str]:
    """Documents of the section's dataset and split, one string each, in a fixed order; empty ones are left out.

    Whatever file exists is text, except that `.jsonl` and `.parquet` are tables. Raises UserError, here or while
    iterating, where the file, split or column does not exist or cannot be read.
    """
    path = Path(section.dataset).expanduser()
    if section.dataset.startswith("builtin:"):
        documents = _builtin(section)
    elif is_at_hand(section):
        documents = _local(path, section)
    else:
        documents = hub_documents(section)
    return (text for text in documents if text.strip())


def is_at_hand(section: TextSection) -> bool:
    """Whether the text is a local file, or means to be one, or comes with Python: no network is needed for it."""
    path = Path(section.dataset).expanduser()
    return section.dataset.startswith("builtin:") or path.suffix.lower() in _READERS or _exists(path)


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no path at all: too long
        return False


def _local(path: Path, section: TextSection) -> Iterator[str]:
    _check_local(section)
    if not path.is_file():
        raise UserError(f"{section.key}.dataset: there is no file {path} (looked from {Path.cwd()})")
    try:
        yield from _READERS.get(path.suffix.lower(), _text_file)(path, section)
    except UnicodeDecodeError as error:
        raise UserError(f"{section.key}.dataset: {path} is not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise UserError(f"{section.key}.dataset: {path} cannot be read: {error.strerror or error}") from error


def _check_local(section: TextSection) -> None:
    for key in ("name", "revision"):
        if getattr(section, key) is not None:
            raise UserError(f"{section.key}.{key} is for Hub datasets, and {section.dataset} is none; leave it out")
    if section.split not in LOCAL_SPLITS:
        raise UserError(
            f"{section.key}.split is {section.split!r}; {section.dataset} has the splits {', '.join(LOCAL_SPLITS)}"
        )


def _in_split(position: float, split: str) -> bool:
    """Whether a document that starts at this share (0 to 1) of the text belongs to the split."""
    return split == "all" or (position < TRAIN_SHARE) == (split == "train")


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
            if _in_split(start / total, section.split):
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


def _text_file(path: Path, section: TextSection) -> Iterator[str]:
    """Chunks of whole lines, some 64 KiB each."""
    chunk: list[str] = []
    size = 0
    for line in _lines(path, section.split):
        chunk.append(line)
        size += len(line)
        if size >= _CHUNK_CHARACTERS:
            yield "".join(chunk)
            chunk, size = [], 0
    yield "".join(chunk)


def _json_lines(path: Path, section: TextSection) -> Iterator[str]:
    """The text of one JSON object a line."""
    for line in _lines(path, section.split):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f"{section.key}.dataset: {path} has a line that is not a JSON object: {line.strip()[:60]!r}"
            )
        yield text_of(row, section)


def _lines(path: Path, split: str) -> Iterator[str]:
    """Lines that start inside the split. The cut is a byte position: no need to count lines first."""
    total, start = path.stat().st_size, 0
    with path.open("rb") as file:
        for line in file:
            if _in_split(start / total, split):
                yield line.decode("utf-8-sig" if start == 0 else "utf-8")
            start += len(line)


def _parquet(path: Path, section: TextSection) -> Iterator[str]:
    """The text of one row after the other; the cut is a row number."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f'{section.key}.dataset: {path} needs pyarrow; pip install "nm_export[data]"') from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        if section.text_column not in columns:
            raise missing_column(section, columns)
        row, total = 0, file.metadata.num_rows
        for batch in file.iter_batches(batch_size=256, columns=[section.text_column]):
            for value in batch.column(0).to_pylist():
                if _in_split(row / total, section.split):
                    yield text_of({section.text_column: value}, section)
                row += 1
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{section.key}.dataset: {path} is not a readable parquet file: {reason}") from error


_READERS = {".txt": _text_file, ".jsonl": _json_lines, ".parquet": _parquet}
