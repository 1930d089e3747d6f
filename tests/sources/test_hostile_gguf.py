"""GGUF files of strangers, through the command line: sizes are compared with the file before anything is allocated."""

import struct
from pathlib import Path

import pytest
import yaml

from tests.refusal import assert_refused
from tests.tiny_folder import tiny_recipe


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<IQ", 10, value)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(entries: list[bytes], tensors: list[bytes], data: int = 64, counts: tuple[int, int] | None = None) -> bytes:
    numbers = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", 3, *numbers) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32 + data)


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")
EARLY, ABSURD = "damaged or incomplete", "damaged or no GGUF model|which no model has"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ABSURD),
        (b"GGUF", EARLY),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), ABSURD),
        (gguf([], [], counts=(2**60, 0)), ABSURD),
        (gguf([], [], counts=(0, 2**60)), ABSURD),
        (gguf([], [], counts=(50_000, 0), data=0), EARLY),
        (gguf([struct.pack("<Q", 2**60)], []), ABSURD),
        (gguf([text("a") + struct.pack("<IQ", 8, 2**60)], []), ABSURD),
        (gguf([text("a") + struct.pack("<IIQ", 9, 0, 2**60)], []), ABSURD),
        (gguf([text("a") + struct.pack("<IIQ", 9, 10, 1_000_000)], []), EARLY),
        (gguf([text("a") + struct.pack("<IIQ", 9, 8, 1_000_000)], []), EARLY),
        (gguf([text("a") + struct.pack("<IIQ", 9, 9, 5)], []), ABSURD),
        (gguf([text("a") + struct.pack("<I", 77)], []), ABSURD),
        (gguf([ARCHITECTURE, ARCHITECTURE], []), "given twice"),
        (gguf([ARCHITECTURE, number("llama.block_count", 10**9)], []), ABSURD),
        (gguf([ARCHITECTURE, number("llama.embedding_length", 2**62)], []), ABSURD),
        (gguf([number("general.alignment", 0)], []), ABSURD),
        (gguf([number("general.alignment", 2**40)], []), ABSURD),
        (gguf([], [tensor("a", (2**20, 2**20))]), "beyond the end"),
        (gguf([], [tensor("a", (2**48, 2**48, 2**48, 2**48))]), "beyond the end"),
        (gguf([], [tensor("a", (4,), offset=2**60)]), "beyond the end"),
        (gguf([], [tensor("a", (4,), kind=999)]), "unknown type"),
        (gguf([], [tensor("a", (5,), kind=2)]), "whole number of blocks"),
        (gguf([], [tensor("a", (8,)), tensor("b", (8,), offset=16)]), "overlaps"),
        (gguf([], [tensor("a", (4,)), tensor("a", (4,), offset=32)]), "there twice"),
        (gguf([], [text("a") + struct.pack("<I", 2**31)]), ABSURD),
        (gguf([], [text("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"))[:8] + b"\xff"]), ABSURD),
    ],
)
def test_gguf_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(tmp_path / "bad.gguf").to_dict()))
    monkeypatch.chdir(tmp_path)
    assert_refused(["recipe.yaml", "--output-dir", "out"], message)
    assert not (tmp_path / "out").exists()
