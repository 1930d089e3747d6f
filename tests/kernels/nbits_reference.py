"""What docs/semantics.md says of NMSparseMatMulNBits, in NumPy: float32 values, and values rounded to 8 bits."""

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from tests.kernels.nbits_sessions import CODE_TYPES, SCALE_DTYPES, ZERO_POINTS, QuantizedWeight, random_weight
from tests.kernels.sessions import DTYPES

EPS = 2.0**-23
_TINY, _HUGE = 1e-37, 1e38  # about the ends of float32
BLOCK_SIZES = [16, 32, 64, 128, 256]
Case = tuple[QuantizedWeight, list[np.ndarray]]
"""A weight, and values, bias, token_shift and offset."""


def assert_follows_specification(y, weight, values, bias, token_shift, offset) -> None:
    """Y, of values' dtype: close to the exact sums."""
    with np.errstate(all="ignore"):
        sums = _sums(values.astype(np.float64), *weight.by_channel())
    _assert_near(y, *sums, len(weight.codes) + 6, bias, token_shift, offset)


def assert_rounds_values(y, weight, values, bias, token_shift, offset) -> None:
    """Y, of values' dtype [tokens, O]: the sums of the very integers of the specification, added in float32."""
    group = min(weight.block_size, 64)
    by_channel, sums = weight.by_channel(), np.zeros((3, *y.shape))
    with np.errstate(all="ignore"):
        for first in range(0, values.shape[1], group):
            rows = slice(first, first + group)
            sums += _rounded_sums(values[:, rows].astype(np.float32), *(numbers[rows] for numbers in by_channel))
    _assert_near(y, *sums, values.shape[1] / group + 80, bias, token_shift, offset)


def _sums(v, codes, zero_points, scales) -> np.ndarray:
    """Exact sums, magnitudes of what is added, and of what may be computed on the way (without the scale): [3, ..., O].

    Values float64 [..., K], the others [K, O]; a value of 0 adds nothing.
    """
    sizes, larger = codes + np.abs(zero_points), np.maximum(np.abs(scales), 1)
    return np.stack(
        [v @ ((codes - zero_points) * scales), np.abs(v) @ (sizes * np.abs(scales)), np.abs(v) @ (sizes * larger)]
    )


def _rounded_sums(v, codes, zero_points, scales) -> np.ndarray:
    """As `_sums` for one group of channels, v float32 [tokens, group], whose values are rounded where they can be."""
    largest = np.abs(v).max(axis=1)
    rounded = (largest >= 2.0**-100) & (largest < np.inf)
    sums = _sums(v.astype(np.float64), codes, zero_points, scales)  # of the others
    v, largest = v[rounded], largest[rounded, None]
    q = np.rint(v * (np.float32(127) / largest)).astype(np.float64)
    zeros = zero_points[0] * q.sum(axis=1, keepdims=True)
    sizes = np.abs(q @ codes) + np.abs(zeros)
    unit, scale = (largest / np.float32(127)).astype(np.float64), scales[0]
    sums[:, rounded] = (
        unit * scale * (q @ codes - zeros),
        unit * np.abs(scale) * sizes,
        unit * np.maximum(np.abs(scale), 1) * sizes,
    )
    return sums


def _assert_near(y, products, magnitudes, peaks, additions, bias, token_shift, offset) -> None:
    """Y within `additions` roundings of float32, and one to its dtype; the rest says what may be NaN or infinite."""
    b, e, o = (a.astype(np.float64) for a in (bias, token_shift, offset))
    info = ml_dtypes.finfo(y.dtype)
    with np.errstate(all="ignore"):
        exact = products + e * o + b
        bound = additions * EPS * (magnitudes + np.abs(e * o) + np.abs(b)) + _TINY
        if y.dtype != np.float32:
            bound += float(info.eps) / 2 * (np.abs(exact) + bound) + float(info.smallest_subnormal)
        got = y.astype(np.float64)
        fine = (np.abs(got - exact) <= bound) | (got == exact) | (np.isnan(got) & np.isnan(exact))
        # infinity times a code less infinity times a zero point is NaN
        fine |= np.isnan(got) & np.isinf(exact)
        fine |= (peaks > _HUGE) & ~np.isnan(exact)  # overflows in some orders of the operations
        too_large = np.abs(exact) + bound > float(info.max)
        fine |= too_large & (got == np.copysign(np.inf, exact))
    assert y.shape == exact.shape
    assert fine.all()


def random_inputs(rng, leading: tuple[int, ...], K: int, O: int, dtype: str = "float32", kept: float = 0.5):  # noqa: E741
    """Values [*leading, K] of which some are kept, bias, token_shift and offset."""
    values = rng.standard_normal((*leading, K)) * (rng.random((*leading, K)) < kept)
    vectors = [rng.standard_normal(shape).astype(np.float32) for shape in (O, (*leading, 1), O)]
    return [values.astype(DTYPES[dtype][0]), *vectors]


@st.composite
def weights(draw, columns=tuple(range(41))) -> tuple[QuantizedWeight, np.random.Generator]:
    """A weight of any kind, and what else is to be random."""
    K = draw(st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 128, 200, 300, 1100])))
    O = draw(st.sampled_from(columns))  # noqa: E741
    code_type = draw(st.sampled_from(list(CODE_TYPES)))
    O += O % 2 if code_type == "uint4" else 0  # noqa: E741
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = [draw(st.sampled_from(kind)) for kind in (BLOCK_SIZES, ZERO_POINTS, SCALE_DTYPES)]
    return random_weight(rng, code_type, K, O, *kinds), rng


@st.composite
def products(draw, leading, columns=tuple(range(41))) -> Case:
    """A weight and inputs of any kind, all finite."""
    weight, rng = draw(weights(columns))
    kept, dtype = draw(st.sampled_from([0, 0.1, 0.5, 1])), draw(st.sampled_from(list(DTYPES)))
    return weight, random_inputs(rng, draw(st.sampled_from(leading)), *weight.codes.shape, dtype, kept)


@st.composite
def unusual_products(draw, tokens, columns=tuple(range(1, 41))) -> Case:
    """As `products`, float32, with values that are NaN, infinite, tiny or huge."""
    weight, rng = draw(weights(columns))
    inputs = random_inputs(rng, (draw(st.sampled_from(tokens)),), *weight.codes.shape)
    values, changed = inputs[0], draw(st.sampled_from(["", "specials", "tiny", "huge", "mixed", "zero scales"]))
    if changed == "specials":
        values[rng.random(values.shape) < 0.02] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    elif changed == "tiny":
        values *= np.float32(2.0 ** draw(st.integers(-150, -80)))
    elif changed == "huge":
        values *= np.float32(2.0**120)
    elif changed == "mixed":
        values *= 10.0 ** rng.integers(-30, 30, values.shape).astype(np.float32)
    elif changed == "zero scales":
        weight.scales[rng.random(weight.scales.shape) < 0.7] = 0
    return weight, inputs
