"""Files of text as people have them -> lines: compressed or not, UTF-8 or what a byte order mark says."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nm_export.errors import UserError

TRAIN_SHARE = 0.8

_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_NOT_READ = {
    **dict.fromkeys((".zst", ".lz4", ".zip", ".7z", ".tar", ".tgz"), "unpack it first"),
    **dict.fromkeys((".csv", ".tsv", ".xlsx", ".arrow", ".feather"), "save it as JSON lines (.jsonl) or .parquet"),
}
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"} | {
    codecs.BOM_UTF16_BE: "utf-16"
}
_SPACE = b" \t\r"
_LONG = 0.1
"""Share of a file that a line may have before the border between two splits goes through it."""


class Line(NamedTuple):
    """A line and its number, from 1."""

    number: int
    text: str


def kind(path: Path) -> str:
    """What a file holds by its name, in lower case and without the suffix of a compression: ".jsonl", ".txt"."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPEN:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def explained(path: Path, key: str) -> Iterator[None]:
    """Turn what reading a file raises within the block into a UserError; `key` is the recipe's, for messages."""
    where = f"{key}: {path}"
    suffix = path.suffix.lower()
    if suffix in _NOT_READ:
        raise UserError(f"{where} is a {suffix} file, which is not read; {_NOT_READ[suffix]}")
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{where} is damaged or no {suffix} file ({error}); copy or compress it again") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not {error.encoding.upper()} text as its byte order mark says: {error.reason}"
        ) from error
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from error


def lines(path: Path, split: str, key: str, *, whole: bool = False) -> Iterator[Line]:
    """Lines that start inside a split. The cut is a position in bytes of UTF-8: no need to count lines first.

    Args:
        path: the file.
        split: train, validation or all.
        key: of the recipe, for messages.
        whole: whether a line stays whole; else one that is a large part of the file is cut at a space, where the
            border between the splits lies.

    Raises:
        UserError: a line is no UTF-8 text, or holds NUL.
    """
    total, start = _size(path), 0
    border = TRAIN_SHARE * total
    for number, line in enumerate(_utf8(path), 1):
        parts = [line]
        if not whole and split != "all" and start < border < start + len(line) and len(line) > _LONG * total:
            cut = 1 + max(line.rfind(byte, 0, int(border) - start) for byte in _SPACE)
            parts = [line[:cut], line[cut:]]
        for part in parts:
            if part and in_split(start / total, split):
                yield Line(number, _decoded(part, number, path, key, first=start == 0))
            start += len(part)


def in_split(position: float, split: str) -> bool:
    """Whether a document that starts at this share (0 to 1) of the text belongs to the split."""
    return split == "all" or (position < TRAIN_SHARE) == (split == "train")


def content(path: Path, limit: int) -> bytes | None:
    """The whole file, unpacked, as bytes of UTF-8; None if it is larger than `limit`."""
    parts, size = [], 0
    for line in _utf8(path):
        parts.append(line)
        size += len(line)
        if size > limit:
            return None
    return b"".join(parts)


def _decoded(line: bytes, number: int, path: Path, key: str, *, first: bool) -> str:
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{key}: {path} is not UTF-8 text: line {number} holds the byte 0x{line[error.start]:02x}; convert it, "
            f"with `iconv -f latin1 -t utf-8` for example"
        ) from error
    if "\0" in text:
        raise UserError(
            f"{key}: {path} holds NUL in line {number}; it is UTF-16 without a byte order mark, or no text: save it as "
            "UTF-8"
        )
    return text


def _size(path: Path) -> int:
    """Bytes of the file, unpacked and as UTF-8."""
    with _open(path) as file:
        if path.suffix.lower() not in _OPEN and _wide(file) is None:
            return path.stat().st_size
    return sum(map(len, _utf8(path)))


def _utf8(path: Path) -> Iterator[bytes]:
    """The file's lines as bytes of UTF-8."""
    with _open(path) as file:
        encoding = _wide(file)
        if encoding is None:
            yield from file
            return
        for line in io.TextIOWrapper(file, encoding=encoding, newline="\n"):
            yield line.encode()


def _open(path: Path) -> Any:
    return _OPEN.get(path.suffix.lower(), open)(path, "rb")


def _wide(file: Any) -> str | None:
    """The encoding of a file whose byte order mark says that it is wider than UTF-8."""
    head: bytes = file.peek(4)[:4]
    return next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), None)
