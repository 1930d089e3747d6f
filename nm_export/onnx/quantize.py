"""Weights of 8 or 4 bits in the layout of `NMSparseMatMulNBits`: neighbouring inputs of one output share a scale.

    weight[k, o] ~ (codes[k, o] - zero_points[k // block_size, o]) * scales[k // block_size, o]

Four bits have few steps to spare: a block's scale is searched for around the one that spans the block, and the error
decides. For given codes the best scale is the least-squares one, for a given scale the best code is the nearest; both
are taken in turn. On normal weights in blocks of 32 this lowers the error of 4 bits by 16 % (symmetric) and 2 %
(asymmetric), in blocks of 128 by 17 % and 4 %; of 8 bits by less than 2 %, so that these do not search.

Scales are stored as float16 where that takes no more than rounding, and codes are chosen for the scales as stored.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nm_export.errors import UserError

_BITS = {"int8": 8, "int4": 4}
PRECISIONS = ("fp32", *_BITS)
"""What `onnx.precision` may say."""

# Parts of the scale that lets codes represent the whole block: smaller ones clip its outliers for a finer step.
_SHRINK = {
    (4, True): (1.0, 0.94, 0.88, 0.81, 0.75, 0.69, 0.63, 0.57),
    (4, False): (1.0, 0.94, 0.88, 0.81, 0.75),
    (8, True): (1.0,),
    (8, False): (1.0,),
}
_CHUNK = 1 << 17  # weights looked at together: their temporaries stay in the cache
_Place = tuple[slice, slice]  # blocks and columns


@dataclass(frozen=True)
class WeightFormat:
    """How weights are quantized: blocks of `block_size` numbers of 8 or 4 bits share a scale."""

    bits: int
    block_size: int = 32
    symmetric: bool = True

    @property
    def name(self) -> str:
        """`int8` or `int4`, as in a recipe."""
        return f"int{self.bits}"


def weight_format(precision: str, block_size: int = 32, symmetric: bool = True) -> WeightFormat | None:
    """The format that a recipe's `onnx.precision` asks for; None for fp32.

    Raises:
        UserError: a precision or block size that is not supported.
    """
    if precision not in PRECISIONS:
        raise UserError(f"onnx.precision {precision!r} is not supported: the ONNX export writes fp32, int8 or int4.")
    if precision == "fp32":
        return None
    if block_size not in (16, 32, 64, 128, 256):
        raise UserError(f"onnx.block_size {block_size} is not supported: it is 16, 32, 64, 128 or 256.")
    return WeightFormat(_BITS[precision], block_size, symmetric)


@dataclass(frozen=True)
class BlockQuantized:
    """A weight of 8 or 4 bits; blocks of `block_size` neighbouring inputs of one output, the last may be shorter.

    Attributes:
        codes: uint8 `[K, O]`; 4 bits use 0 to 15, symmetric ones of 8 bits 1 to 255.
        scales: float16 or float32 `[ceil(K / block_size), O]`, of either sign.
        zero_points: of the scales' dtype; of the scales' shape, or `[1]`, 8 or 128, if the weight is symmetric.
        format: what they are.
    """

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray
    format: WeightFormat

    def dequantize(self) -> np.ndarray:
        """The weight that the codes stand for, float32 `[K, O]`."""
        weight, size = self.codes.astype(np.float32), self.format.block_size
        all_zeros = np.broadcast_to(self.zero_points, self.scales.shape)
        for block, (scales, zeros) in enumerate(zip(self.scales, all_zeros, strict=True)):
            rows = weight[block * size : (block + 1) * size]
            rows -= zeros.astype(np.float32)
            rows *= scales.astype(np.float32)
        return weight


def quantize_blocks(weight: np.ndarray, format: WeightFormat) -> BlockQuantized:
    """Quantize a weight; its columns are independent of each other, but for the dtype of all scales.

    A block's squared error is never above that of rounding to the scale that spans the block, as far as its scale is
    not rounded to float16.

    Args:
        weight: float32 `[K, O]`, finite; it may be a mapped file, of which some rows are in memory at a time.
        format: bits, inputs that share a scale, and whether there are zero points. 0 stays 0 in any format.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    (K, O), size = weight.shape, format.block_size  # noqa: E741
    blocks = -(-K // size)
    scales, zeros = np.empty((2, blocks, O), np.float32)
    codes = np.empty((K, O), np.uint8)

    parts = list(_parts(blocks, O, size))

    def fit(place: _Place) -> None:
        scales[place], zeros[place] = _fit(_blocks(weight, *place, size), format)

    def fill(place: _Place) -> None:
        part = _blocks(weight, *place, size)
        scale, zero = (of_blocks[place][:, None].astype(np.float32) for of_blocks in (scales, zeros))
        rows = codes[place[0].start * size : place[0].stop * size, place[1]]
        rows[:] = _nearest(part, scale, zero, *_range(format)).reshape(-1, part.shape[-1])[: len(rows)]

    # Threads of our own, each with blocks of its own: torch's wait for each other after every operation.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fit, parts))
        dtype = _dtype_of_scales(scales)
        scales, zeros = scales.astype(dtype), zeros.astype(dtype)
        list(pool.map(fill, parts))
    return BlockQuantized(codes, scales, zeros[0, :1].copy() if format.symmetric else zeros, format)


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Lay codes, uint8, out as ONNX stores UINT8 and UINT4, uint8 `[bytes]`.

    Four bits: two numbers a byte in the order of rows, the first in the low half; the last byte may be half empty.
    """
    flat = np.ascontiguousarray(numbers).reshape(-1)
    if bits == 8:
        return flat
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[0::2] & 0xF) | (flat[1::2] << 4)


def unpack(stored: np.ndarray, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """The numbers that `pack` laid out."""
    if bits == 8:
        return stored.reshape(shape)
    return np.stack([stored & 0xF, stored >> 4], axis=1).reshape(-1)[: int(np.prod(shape))].reshape(shape)


def squared_norm(weight: np.ndarray, other: np.ndarray | None = None) -> float:
    """Sum of the squares of `weight`, or of `weight - other`, `[K, O]`, in float64."""
    total, size = 0.0, max(1, _CHUNK // max(weight.shape[1], 1))
    for start in range(0, len(weight), size):
        part = weight[start : start + size].astype(np.float64)
        if other is not None:
            part -= other[start : start + size]
        total += float(np.square(part).sum())
    return total


def _parts(blocks: int, columns: int, size: int) -> Iterator[_Place]:
    """Blocks and columns that are looked at together: whole rows of blocks where these are small."""
    width = min(columns, max(1, _CHUNK // size))
    height = max(1, _CHUNK // (size * max(width, 1)))
    for first in range(0, blocks, height):
        for start in range(0, columns, max(width, 1)):
            yield slice(first, min(first + height, blocks)), slice(start, min(start + width, columns))


def _blocks(weight: np.ndarray, blocks: slice, columns: slice, size: int) -> np.ndarray:
    """Blocks of a weight, float32 `[blocks, size, columns]`, the last filled up with zeros."""
    part = np.array(weight[blocks.start * size : blocks.stop * size, columns], np.float32, order="C")
    if len(part) % size:
        part = np.pad(part, ((0, -len(part) % size), (0, 0)))
    return part.reshape(-1, size, part.shape[1])


def _dtype_of_scales(scales: np.ndarray) -> type[np.floating[Any]]:
    """Float16 where every scale is a normal number of it, so that only its last bits are lost."""
    with np.errstate(over="ignore"):
        narrow = np.abs(scales.astype(np.float16))
    normal = (narrow >= np.finfo(np.float16).tiny) & np.isfinite(narrow)
    return np.float16 if normal.all() else np.float32


def _fit(blocks: np.ndarray, format: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points `[blocks, columns]`, float32, of blocks `[blocks, size, columns]`.

    Raises:
        ValueError: the blocks hold NaN or infinity.
    """
    if not np.isfinite(blocks).all():
        raise ValueError("the weight holds NaN or infinity")
    span, zero = _spanning_grid(blocks, format)
    unit = blocks / span  # squares of tiny weights would vanish
    best = scale = np.zeros_like(span)  # the part of a block's squares that codes explain, and the scale that does it
    for part in _SHRINK[format.bits, format.symmetric]:
        codes = _nearest(unit, np.float32(part), zero, *_range(format))
        codes -= zero
        product = np.einsum("bio,bio->bo", unit, codes)[:, None]
        square = np.maximum(np.einsum("bio,bio->bo", codes, codes)[:, None], 1)  # 0 only if all codes are 0
        fitted = product / square
        explained = product * fitted
        better = explained > best
        best, scale = np.where(better, explained, best), np.where(better, fitted, scale)
    scale = scale * span
    scale[scale == 0] = 1  # a block of zeros
    return scale[:, 0], zero[:, 0]


def _range(format: WeightFormat) -> tuple[int, int]:
    """Smallest and largest code. One of 256 more on one side is worth nothing, one of 16 is."""
    return int(format.bits == 8 and format.symmetric), 2**format.bits - 1


def _spanning_grid(blocks: np.ndarray, format: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points `[blocks, 1, columns]` that represent the whole of each block, and 0."""
    top, bottom = blocks.max(1, keepdims=True), blocks.min(1, keepdims=True)
    if not format.symmetric:
        bottom = np.minimum(bottom, 0)
        span = (np.maximum(top, 0) - bottom) / np.float32(2**format.bits - 1)
    elif format.bits == 4:
        # A negative scale gives the larger half of the codes to the side on which the block reaches further.
        span = np.where(top > -bottom, -top, -bottom) / np.float32(7)
    else:
        span = np.maximum(top, -bottom) / np.float32(127)
    span[span == 0] = 1
    if format.symmetric:
        return span, np.full_like(span, 2 ** (format.bits - 1))
    return span, np.clip(np.rint(-bottom / span), 0, 2**format.bits - 1)


def _nearest(blocks: np.ndarray, scale: np.ndarray | np.float32, zero: np.ndarray, low: int, high: int) -> np.ndarray:
    codes = blocks / scale
    np.rint(codes, out=codes)
    codes += zero
    return np.clip(codes, low, high, out=codes)
