"""Weights of 8 or 4 bits in the layout of `NMSparseMatMulNBits`: blocks of neighbouring outputs share a scale.

    weight[k, o] ~ (codes[k, o] - zero_points[k, o // block_size]) * scales[k, o // block_size]

An input channel's codes and scales lie together, so that a dropped channel is skipped whole. Four bits have few steps
to spare: a block's scale is searched for around the one that spans the block, and the error decides. For given codes
the best scale is the least-squares one, for a given scale the best code is the nearest; both are taken in turn. On
normal weights in blocks of 32 this lowers the error of 4 bits by 16 % (symmetric) and 2 % (asymmetric), in blocks of
128 by 17 % and 4 %; of 8 bits by less than 2 %, so that these do not search.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
    """A weight of 8 or 4 bits; blocks of `block_size` neighbouring outputs, the last of a row may be shorter.

    Attributes:
        codes: `[K, O]`, int8, or uint8 if there are zero points; 4 bits use -8 to 7 or 0 to 15.
        scales: float32 `[K, ceil(O / block_size)]`, of either sign.
        zero_points: like the codes, `[K, ceil(O / block_size)]`; zeros if the weight is symmetric.
        format: what they are.
    """

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray
    format: WeightFormat

    def dequantize(self) -> np.ndarray:
        """The weight that the codes stand for, float32 `[K, O]`."""
        size, width = self.format.block_size, self.codes.shape[1]
        scales, zeros = (np.repeat(a, size, axis=1)[:, :width] for a in (self.scales, self.zero_points))
        return (self.codes.astype(np.float32) - zeros.astype(np.float32)) * scales


def quantize_blocks(weight: np.ndarray, format: WeightFormat) -> BlockQuantized:
    """Quantize a weight; rows are independent of each other.

    A block's squared error is never above that of rounding to the scale that spans the block.

    Args:
        weight: float32 `[K, O]`, finite; it may be a mapped file, of which some rows are in memory at a time.
        format: bits, outputs that share a scale, and whether there are zero points. 0 stays 0 in any format.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    K, O = weight.shape  # noqa: E741
    size, blocks = format.block_size, -(-O // format.block_size)
    dtype = np.int8 if format.symmetric else np.uint8
    result = BlockQuantized(
        np.empty((K, O), dtype), np.empty((K, blocks), np.float32), np.empty((K, blocks), dtype), format
    )

    def fill(rows: slice) -> None:
        chunk = np.array(weight[rows], np.float32, order="C")
        if not np.isfinite(chunk).all():
            raise ValueError("the weight holds NaN or infinity")
        part = np.pad(chunk, ((0, 0), (0, -O % size))).reshape(-1, blocks, size)
        codes, scales, zeros = _quantize(part, format.bits, format.symmetric)
        result.codes[rows] = codes.reshape(-1, blocks * size)[:, :O]
        result.scales[rows] = scales[..., 0]
        result.zero_points[rows] = zeros[..., 0]

    # Threads of our own, each with rows of its own: torch's wait for each other after every operation.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, _chunks(K, O)))
    return result


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Lay codes or zero points out as ONNX stores INT8, UINT8, INT4 and UINT4, uint8 `[bytes]`.

    Four bits: two numbers a byte in the order of rows, the first in the low half; the last byte may be half empty.
    """
    flat = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
    if bits == 8:
        return flat
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[0::2] & 0xF) | (flat[1::2] << 4)


def unpack(stored: np.ndarray, shape: tuple[int, ...], bits: int, *, signed: bool) -> np.ndarray:
    """The numbers that `pack` laid out, int8 if `signed`, else uint8."""
    dtype = np.int8 if signed else np.uint8
    if bits == 8:
        return stored.view(dtype).reshape(shape)
    flat = np.stack([stored & 0xF, stored >> 4], axis=1).reshape(-1)[: int(np.prod(shape))].reshape(shape)
    return ((flat ^ 8).astype(np.int8) - 8).astype(np.int8) if signed else flat


def squared_norm(weight: np.ndarray, other: np.ndarray | None = None) -> float:
    """Sum of the squares of `weight`, or of `weight - other`, `[K, O]`, in float64."""
    total = 0.0
    for rows in _chunks(*weight.shape):
        part = weight[rows].astype(np.float64) if other is None else weight[rows].astype(np.float64) - other[rows]
        total += float(np.square(part).sum())
    return total


def _chunks(K: int, O: int) -> Iterator[slice]:  # noqa: E741
    size = max(1, _CHUNK // max(O, 1))
    for start in range(0, K, size):
        yield slice(start, start + size)


def _quantize(blocks: np.ndarray, bits: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and zero points, float32 but for their values, of blocks float32 `[..., block_size]`."""
    low, high = _range(bits, symmetric)
    span, zero = _spanning_grid(blocks, bits, symmetric)
    unit = blocks / span  # squares of tiny weights would vanish
    best = scale = np.zeros_like(span)  # the part of a block's squares that codes explain, and the scale that does it
    for part in _SHRINK[bits, symmetric]:
        codes = _nearest(unit, np.float32(part), zero, low, high)
        codes -= zero
        product = np.einsum("...i,...i->...", unit, codes)[..., None]
        square = np.maximum(np.einsum("...i,...i->...", codes, codes)[..., None], 1)  # 0 only if all codes are 0
        fitted = product / square
        explained = product * fitted
        better = explained > best
        best, scale = np.where(better, explained, best), np.where(better, fitted, scale)
    scale[scale == 0] = 1  # a block of zeros
    return _nearest(unit, scale, zero, low, high), scale * span, zero


def _range(bits: int, symmetric: bool) -> tuple[int, int]:
    if not symmetric:
        return 0, 2**bits - 1
    # One code of 256 more on one side is worth nothing, one of 16 is.
    return (-8, 7) if bits == 4 else (-127, 127)


def _spanning_grid(blocks: np.ndarray, bits: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points that represent the whole of each block, and 0."""
    top, bottom = blocks.max(-1, keepdims=True), blocks.min(-1, keepdims=True)
    if not symmetric:
        bottom = np.minimum(bottom, 0)
        span = (np.maximum(top, 0) - bottom) / np.float32(2**bits - 1)
    elif bits == 4:
        # A negative scale gives the larger half of the codes to the side on which the block reaches further.
        span = np.where(top > -bottom, -top, -bottom) / np.float32(7)
    else:
        span = np.maximum(top, -bottom) / np.float32(127)
    span[span == 0] = 1
    zero = np.zeros_like(span) if symmetric else np.clip(np.rint(-bottom / span), 0, 2**bits - 1)
    return span, zero


def _nearest(blocks: np.ndarray, scale: np.ndarray | np.float32, zero: np.ndarray, low: int, high: int) -> np.ndarray:
    codes = blocks / scale
    np.rint(codes, out=codes)
    codes += zero
    return np.clip(codes, low, high, out=codes)
