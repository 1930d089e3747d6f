"""The header of a GGUF file, checked against the file's size before a library allocates anything for it.

The format: magic, version, number of tensors, number of metadata entries; the entries (key, type, value); the tensors'
descriptions (name, dimensions, type, offset); and after padding their data. Version 2 and 3, little endian.
"""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from nm_export.errors import UserError
from nm_export.sources.config_file import check_number

MAX_TENSORS = 100_000
MAX_ENTRIES = 10_000
MAX_TEXT = 4_000_000
MAX_ITEMS = 2_000_000

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


class _Tensor(NamedTuple):
    name: str
    kind: int
    elements: int
    offset: int


class _Header:
    """Reads the fields of a header one after the other; a file that ends too early raises EOFError."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def scalar(self, form: str) -> int | float:
        length = struct.calcsize(form)
        content = self.file.read(length)
        if len(content) < length:
            raise EOFError
        value: int | float = struct.unpack(form, content)[0]
        return value

    def number(self, form: str, limit: int, what: str) -> int:
        value = int(self.scalar(form))
        if value > limit:
            raise ValueError(f"{value:,} {what}")
        return value

    def text(self) -> str:
        length = self.number("<Q", MAX_TEXT, "bytes of text")
        content = self.file.read(length)
        if len(content) < length:
            raise EOFError
        return content.decode("utf-8")

    def entry(self, origin: str) -> tuple[str, int | float | None]:
        """Read a metadata entry; return its key and, of a number, the value."""
        key = self.text()
        kind = int(self.scalar("<I"))
        if kind in _SCALARS:
            value = self.scalar(_SCALARS[kind])
            if kind != 7:
                check_number(key, value, origin)
            return key, value
        self._skip(kind, key)
        return key, None

    def _skip(self, kind: int, key: str) -> None:
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY:
            item = int(self.scalar("<I"))
            count = self.number("<Q", MAX_ITEMS, f"items in {key[:80]}")
            if item in _SCALARS:
                self._forward(count * struct.calcsize(_SCALARS[item]))
            elif item == _STRING:
                for _ in range(count):
                    self._forward(int(self.scalar("<Q")))
            else:
                raise ValueError(f"an array of type {item} in {key[:80]}")
        else:
            raise ValueError(f"a value of type {kind} in {key[:80]}")

    def _forward(self, length: int) -> None:
        if length > self.size - self.file.tell():
            raise EOFError
        self.file.seek(length, 1)

    def tensor(self) -> _Tensor:
        name = self.text()
        elements = 1
        for _ in range(self.number("<I", 4, f"dimensions of {name[:80]}")):
            elements *= self.number("<Q", 2**48, f"numbers along a dimension of {name[:80]}")
        return _Tensor(name, int(self.scalar("<I")), elements, int(self.scalar("<Q")))


def check_gguf(path: Path) -> None:
    """Raise UserError unless the header of a GGUF file describes what the file holds.

    Refused are counts, lengths and numbers that no model has, keys and tensors that are there twice, types that are not
    known, and tensors that overlap or lie beyond the end of the file.
    """
    try:
        with path.open("rb") as file:
            _check(_Header(file, path.stat().st_size), str(path))
    except EOFError as error:
        raise UserError(f"{path} is damaged or incomplete (it ends too early); download or copy it again") from error
    except (ValueError, struct.error) as error:
        raise UserError(f"{path} is damaged or no GGUF model ({error}); download or copy it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _check(header: _Header, origin: str) -> None:
    if header.file.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = int(header.scalar("<I"))
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    tensor_count = header.number("<Q", MAX_TENSORS, "tensors")
    entry_count = header.number("<Q", MAX_ENTRIES, "metadata entries")
    alignment = 32
    keys: set[str] = set()
    for _ in range(entry_count):
        key, value = header.entry(origin)
        if key in keys:
            raise ValueError(f"{key[:80]} is given twice")
        keys.add(key)
        if key == "general.alignment":
            alignment = int(value or 0)
    if alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise ValueError(f"an alignment of {alignment}")
    tensors = [header.tensor() for _ in range(tensor_count)]
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ValueError("a tensor is there twice")
    start = -(-header.file.tell() // alignment) * alignment
    _check_data(tensors, start, header.size)


def _check_data(tensors: list[_Tensor], start: int, size: int) -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        except (ValueError, KeyError):
            raise ValueError(f"{tensor.name[:80]} has the unknown type {tensor.kind}") from None
        if tensor.elements % block:
            raise ValueError(f"{tensor.name[:80]} is no whole number of blocks")
        if tensor.offset < end:
            raise ValueError(f"{tensor.name[:80]} overlaps another tensor")
        end = tensor.offset + tensor.elements // block * block_bytes
        if start + end > size:
            raise ValueError(f"{tensor.name[:80]} lies beyond the end of the file")
