"""Text -> consecutive windows of tokens, counted from its start. docs/evaluation.md states the rule."""

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from nm_export.calibration.documents import BUILTIN, load_text
from nm_export.calibration.text_files import kind
from nm_export.errors import UserError
from nm_export.recipe import TextSection
from nm_export.tokenizer_files import beginning_of_text

WINDOW = 512
WINDOWS = 24

CHARACTERS_PER_TOKEN = 32
"""So much text is read for each token wanted. No ordinary text needs as much, so the limit depends on no tokenizer."""

_SEPARATOR = "\n\n"
_TABLES = (".jsonl", ".json", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class TextWindows:
    """Consecutive windows of one text."""

    name: str
    """The text as the user named it."""

    input_ids: torch.Tensor
    """int64 [windows, window]; no padding. Each row is a context of its own, and its first token is not scored."""

    provenance: dict[str, Any]
    """Text, split, SHA-256 of the text and of the ids, numbers of characters and tokens. JSON values only."""


class _Section(TextSection):
    """A text named on the command line."""

    @property
    def key(self) -> str:
        return "text"


def read_windows(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    window: int = WINDOW,
    windows: int = WINDOWS,
    text_column: str = "text",
) -> TextWindows:
    """Tokenize a text and cut it, from its start, into at most `windows` consecutive windows.

    Args:
        tokenizer: the model's tokenizer.
        text: a file, a folder of files, `builtin:python-docs`, or `ID[:SUBSET]` of a Hub dataset; `@SPLIT` behind it
            chooses a split (Hub and built-in: `validation` by default; files: `all`).
        window: tokens in a window, with the beginning-of-sequence token where the tokenizer starts texts with one.
        windows: how many windows at most; the rest of the text is not looked at.
        text_column: column or JSON key that holds the text of tables.

    Raises:
        UserError: the text does not exist, cannot be read, or does not fill one window.
    """
    if window < 2:
        raise UserError(f"a window of {window} tokens predicts nothing; it needs at least 2")
    split, pieces = _pieces(text, text_column)
    content = _start(pieces, CHARACTERS_PER_TOKEN * window * windows)
    prefix = beginning_of_text(tokenizer)
    body = window - len(prefix)
    ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    count = min(windows, len(ids) // body)
    if count < 1:
        raise UserError(
            f"{text} has {len(ids):,} tokens, but one window needs {body:,}; give more text or a smaller --window"
        )
    rows = torch.tensor(ids[: count * body], dtype=torch.int64).view(count, body)
    input_ids = torch.cat([torch.tensor(prefix, dtype=torch.int64).expand(count, -1), rows], dim=1)
    provenance = {
        "text": text,
        "split": split,
        "characters": len(content),
        "text_sha256": _sha256(content.encode("utf-8", "surrogatepass")),
        "tokens": len(ids),
        "window": window,
        "windows": count,
        "beginning_token": bool(prefix),
        "ids_sha256": _sha256(input_ids.numpy().astype("<i8").tobytes()),
    }
    if text.startswith(BUILTIN):
        provenance["python"] = ".".join(map(str, sys.version_info[:3]))  # the text differs between versions
    return TextWindows(text, input_ids, provenance)


def _pieces(text: str, text_column: str) -> tuple[str, Iterator[str]]:
    """The split, and strings which make up the text when they are written one after the other."""
    name, split = text, None
    if not Path(text).expanduser().exists() and "@" in text:
        name, _, split = text.rpartition("@")
    path = Path(name).expanduser()
    if path.is_dir():
        if split not in (None, "all"):
            raise UserError(f"{name} is a folder, and has no split {split}")
        return "all", _folder(path, text_column)
    if path.is_file():
        return split or "all", _file(path, split or "all", text_column)
    if name.startswith("builtin:"):
        section = _section(name, split or "validation", text_column)
    else:
        identifier, _, subset = name.partition(":")
        if not _HUB_ID.fullmatch(identifier):
            raise UserError(f"there is no text {name}: no such file or folder, and no name of a Hub dataset")
        section = _section(identifier, split or "validation", text_column, subset or None)
    return section.split, _joined(load_text(section))


def _section(dataset: str, split: str, text_column: str, subset: str | None = None) -> TextSection:
    return _Section(dataset=dataset, name=subset, split=split, text_column=text_column)


def _folder(folder: Path, text_column: str) -> Iterator[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    relative = sorted(path.relative_to(folder) for path in files)
    visible = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
    if not visible:
        raise UserError(f"{folder} holds no files")
    return _joined("".join(_file(folder / path, "all", text_column)) for path in visible)


def _file(path: Path, split: str, text_column: str) -> Iterator[str]:
    documents = load_text(_section(str(path), split, text_column))
    return _joined(documents) if kind(path) in _TABLES else documents  # text comes in chunks of whole lines


def _joined(documents: Iterator[str]) -> Iterator[str]:
    """Documents with an empty line between them."""
    for index, document in enumerate(documents):
        yield document if index == 0 else _SEPARATOR + document


def _start(pieces: Iterator[str], characters: int) -> str:
    """The first characters of the text; what lies behind them is not read."""
    kept: list[str] = []
    missing = characters
    for piece in pieces:
        kept.append(piece[:missing])
        missing -= len(kept[-1])
        if missing == 0:
            break
    return "".join(kept)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
