"""Text files as people have them: read as what they say, or refused in a sentence with file, place and remedy."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from nm_export.calibration.text import load_text, read_sequences
from nm_export.errors import UserError
from tests.calibration.test_text import byte_tokenizer, section

SENTENCE = "The quick brown fox jumps over the lazy dog. "
LINES = "".join(f"{index:04d} naïve café\n" for index in range(200))
ROWS = [json.dumps({"text": f"row {index}"}) for index in range(20)]
TEXTS = [f"row {index}" for index in range(20)]


def read(path: Path, content: bytes, split: str = "all", **fields: Any) -> list[str]:
    path.write_bytes(content)
    return list(load_text(section(path, split=split, **fields)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", ("\ufeff" + "\r\n".join(ROWS) + "\r\n\r\n").encode()),
        ("empty-lines.jsonl", ("\n\n".join(ROWS) + "\n\n\n").encode()),
        ("nulls.jsonl", "\n".join([*ROWS, json.dumps({"text": None})]).encode()),
        ("UPPER.JSONL", "\n".join(ROWS).encode()),
        ("packed.jsonl.gz", gzip.compress("\n".join(ROWS).encode(), mtime=0)),
        ("packed.JSONL.BZ2", bz2.compress("\n".join(ROWS).encode())),
        ("wide.jsonl", "\n".join(ROWS).encode("utf-16")),
        ("array.json", ("\ufeff" + json.dumps([json.loads(row) for row in ROWS], indent=2)).encode()),
        ("strings.json", json.dumps(TEXTS).encode()),
        ("lines.json", "\n".join(ROWS).encode()),
    ],
)
def test_rows(name: str, content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path / name, content) == TEXTS
    train, validation = (read(tmp_path / name, content, split) for split in ("train", "validation"))
    assert train + validation == TEXTS
    assert 14 <= len(train) <= 17


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.txt", ("\ufeff" + LINES).encode()),
        ("crlf.txt", LINES.replace("\n", "\r\n").encode()),
        ("mac.txt", LINES.replace("\n", "\r").encode()),
        ("utf16.txt", LINES.encode("utf-16")),
        ("utf16-be.txt", b"\xfe\xff" + LINES.encode("utf-16-be")),
        ("utf32.txt", LINES.encode("utf-32")),
        ("text.txt.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("text.xz", lzma.compress(LINES.encode())),
    ],
)
def test_lines(name: str, content: bytes, tmp_path: Path) -> None:
    train, validation, everything = (
        "".join(read(tmp_path / name, content, split)) for split in ("train", "validation", "all")
    )
    assert everything == train + validation == LINES
    assert 0.75 * len(LINES) < len(train) < 0.85 * len(LINES)


def test_a_text_of_one_line_has_both_splits(tmp_path: Path) -> None:
    content = (SENTENCE * 100).encode()
    train, validation = ("".join(read(tmp_path / "one.txt", content, split)) for split in ("train", "validation"))
    assert train + validation == SENTENCE * 100
    assert train.endswith(" ")
    assert 0.19 * len(content) < len(validation) < 0.21 * len(content)


@pytest.mark.parametrize("column", ["messages", "chat"])
def test_chats_are_written_by_the_chat_template(column: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    chat = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
    path.write_text(json.dumps({column: chat}) + "\n")
    fields = {} if column == "messages" else {"text_column": column}
    tokenizer = byte_tokenizer(eos=False)
    wanted = section(path, split="all", num_samples=1, sequence_length=13, **fields)
    with pytest.raises(UserError, match=rf"'{column}' of .*line 1, holds chats, and there is no chat template"):
        read_sequences(tokenizer, wanted)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}"
    assert tokenizer.decode(read_sequences(tokenizer, wanted).input_ids[0]) == "<u>How?<a>So."
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match=r"line 1, holds a chat that .* does not take .*roles must alternate"):
        read_sequences(tokenizer, wanted)


def test_several_texts_of_a_row_are_lines(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", b'{"text": ["one", "two"]}') == ["one\ntwo"]


@pytest.mark.parametrize("content", [b"", b" \n" * 500])
def test_files_without_a_word_give_nothing(content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", content) == []


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.txt", b"words\nna\xefve\n", "line 2 holds the byte 0xef; convert it, with `iconv -f latin1"),
        ("a.txt", b"words\nwo\0rds\n", "holds NUL in line 2; it is UTF-16 without a byte order mark, or no text"),
        ("a.txt", "words".encode("utf-16-le"), "holds NUL in line 1"),
        ("a.txt", b"\xff\xfe" + b"a\0" * 9 + b"b", "is not UTF-16-LE text as its byte order mark says"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b\\ud800"}\n', "holds half a character ('\\ud800') in line 2"),
        ("a.json", b'["a", "b\\udfff"]', "half a character ('\\udfff') in item 2"),
        ("a.jsonl", b'{\n  "text": "a"\n}\n', "'{', line 1; a file that is one JSON value as a whole is named .json"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": {"b": 1}}\n', "line 3, holds dict, not text; name the column"),
        ("a.json", b"5", "is no list of JSON objects; write one object a line, as .jsonl"),
        ("a.json", b"[5]", "holds int as item 1, not a JSON object"),
        ("a.txt.gz", b"no gzip", "is damaged or no .gz file"),
        ("a.txt.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], "is damaged or no .gz file"),
        ("a.txt.bz2", b"no bzip2", "a.txt.bz2"),
        ("a.txt.xz", b"no xz", "is damaged or no .xz file"),
        ("a.txt.zst", b"(\xb5/\xfd", "is a .zst file, which is not read; unpack it first"),
        ("a.csv", b"text\nwords\n", "is a .csv file, which is not read; save it as JSON lines (.jsonl) or .parquet"),
    ],
)
def test_what_cannot_be_read_is_said_with_place_and_remedy(
    name: str, content: bytes, part: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / name, content)
    assert part in str(caught.value)
    assert str(caught.value).startswith("calibration.")
    assert "\n" not in str(caught.value)
