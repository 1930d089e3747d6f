"""Formats of a weight as the two rivals store them: this package's operators `[K, O]`, ONNX Runtime's its own way.

Floating point stands against ONNX Runtime's float32 MatMul; 8 and 4 bits against MatMulNBits with the same numbers,
symmetric, in blocks along K; this package's scales are float16, ONNX Runtime's float32.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch

from nm_export.errors import UserError
from nm_export.onnx.quantize import pack

# as onnx.TensorProto names them; the package onnx is optional
FLOAT, UINT8, FLOAT16, BFLOAT16, UINT4 = 1, 2, 10, 16, 21
_DEFAULT_BLOCK = 32
_FORMATS = ("fp32", "fp16", "bf16", "int8", "int4")


@dataclass(frozen=True)
class Storage:
    """How a weight is stored: `fp32`, `fp16`, `bf16`, `int8` or `int4`, the last two with a block size."""

    name: str
    block_size: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Storage":
        """Read `int4` or `int4:128`.

        Raises:
            UserError: neither a format nor a format with a block size.
        """
        match = re.fullmatch(r"(\w+?)(?::(\d+))?", text)
        name = match[1] if match else text
        quantized = name in ("int8", "int4")
        if match is None or name not in _FORMATS or (match[2] and not quantized):
            known = ", ".join(_FORMATS)
            raise UserError(f"--weights {text!r} is not a format; known are {known}, int8 and int4 with :BLOCK_SIZE.")
        block_size = int(match[2] or _DEFAULT_BLOCK) if quantized else None
        if block_size is not None and (block_size & (block_size - 1) or not 16 <= block_size <= 256):
            raise UserError(f"--weights {text!r}: a block size is a power of two from 16 to 256.")
        return cls(name, block_size)

    def __str__(self) -> str:
        return self.name if self.block_size is None else f"{self.name}, block {self.block_size}"

    @property
    def bits(self) -> int:
        """Bits of one number; those of a quantized weight without its scales."""
        return {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4}[self.name]

    @property
    def tolerance(self) -> float:
        """Largest difference from the product with the float32 weight, as a share of its largest element.

        Enough for rounding to the format, and for activations that MatMulNBits rounds to 8 bits; too little for a
        mistake in a layout.
        """
        return {"fp32": 1e-4, "fp16": 1e-2, "bf16": 2e-2, "int8": 5e-2, "int4": 0.25}[self.name]


@dataclass(frozen=True)
class StoredTensor:
    """A constant of a graph: its ONNX type, its shape and its bytes."""

    type: int
    shape: tuple[int, ...]
    content: np.ndarray

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return int(self.content.nbytes)


def sparse_tensors(weight: np.ndarray, form: Storage) -> dict[str, StoredTensor]:
    """What NMSparseMatMul or NMSparseMatMulNBits reads: `weight`, and `scales` and `zero_points` where it is quantized.

    Args:
        weight: float32 `[K, O]`.
        form: the format.
    """
    if form.block_size is None:
        return {"weight": _floating(weight, form)}
    codes, scales = _quantize(weight, form.bits, form.block_size)
    return {
        "weight": StoredTensor(UINT8 if form.bits == 8 else UINT4, weight.shape, pack(codes.T, form.bits)),
        "scales": StoredTensor(FLOAT16, scales.shape[::-1], scales.T.astype(np.float16, order="C")),
        "zero_points": StoredTensor(FLOAT16, (1,), np.array([2 ** (form.bits - 1)], np.float16)),
    }


def dense_tensors(weight: np.ndarray, form: Storage) -> dict[str, StoredTensor]:
    """What ONNX Runtime's MatMul or MatMulNBits reads: `weight`, and `scales` where it is quantized; as above."""
    if form.block_size is None:
        return {"weight": StoredTensor(FLOAT, weight.shape, weight)}
    K, O = weight.shape  # noqa: E741
    codes, scales = _quantize(weight, form.bits, form.block_size)
    blocks = scales.shape[1]
    padded = np.full((O, blocks * form.block_size), 2 ** (form.bits - 1), np.uint8)
    padded[:, :K] = codes
    shape = (O, blocks, form.block_size * form.bits // 8)
    return {
        "weight": StoredTensor(UINT8, shape, pack(padded, form.bits)),
        "scales": StoredTensor(FLOAT, scales.shape, scales),
    }


def _floating(weight: np.ndarray, form: Storage) -> StoredTensor:
    if form.name == "fp32":
        return StoredTensor(FLOAT, weight.shape, weight)
    if form.name == "fp16":
        return StoredTensor(FLOAT16, weight.shape, weight.astype(np.float16))
    narrow = torch.from_numpy(weight).to(torch.bfloat16).view(torch.int16).numpy()  # NumPy has no bfloat16
    return StoredTensor(BFLOAT16, weight.shape, narrow)


def _quantize(weight: np.ndarray, bits: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 `[O, K]` and scales float32 `[O, blocks]` of symmetric blocks of inputs; zero is 8 or 128."""
    weight = np.ascontiguousarray(weight.T)
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    padded = np.pad(weight, ((0, 0), (0, blocks * block_size - columns))).reshape(rows, blocks, block_size)
    largest = 2 ** (bits - 1) - 1
    scales = np.abs(padded).max(axis=2) / np.float32(largest)
    scales[scales == 0] = 1
    codes = (np.rint(padded / scales[:, :, None]) + (largest + 1)).astype(np.uint8)
    return codes.reshape(rows, -1)[:, :columns], scales
