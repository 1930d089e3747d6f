"""Calls of NMTopK with everything that a token can hold, and what the specification says of their results."""

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from tests.kernels import reference
from tests.kernels.sessions import DTYPES, assert_identical

TINY = np.finfo(np.float32).tiny
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, TINY / 8, -TINY / 4, 1e-45, 3e38, -3e38, 1.0, -1.0])


def _normal(rng, shape):
    return rng.standard_normal(shape)


def _few_distinct(rng, shape):
    return rng.choice([-2.0, -1.0, 0.0, -0.0, 1.0, 2.0], shape)


def _special(rng, shape):
    return rng.choice(SPECIAL, shape)


def _sprinkled(rng, shape):
    return np.where(rng.random(shape) < 0.05, rng.choice(SPECIAL, shape), rng.standard_normal(shape))


def _subnormal(rng, shape):
    return rng.integers(-20, 20, shape) * 1e-45


def _outliers(rng, shape):
    return rng.standard_normal(shape) * np.exp(3 * rng.standard_normal(shape))


CONTENTS = [_normal, _few_distinct, _special, _sprinkled, _subnormal, _outliers, lambda rng, shape: np.zeros(shape)]
SHAPES = [(), (1,), (5,), (1, 1), (2, 3), (3, 1), (1, 2, 3), (0,), (2, 0)]


@st.composite
def cases(draw):
    m = draw(st.one_of(st.integers(1, 64), st.sampled_from([4, 8, 16, 32, 64]), st.integers(65, 1100)))
    n = draw(st.one_of(st.integers(1, m), st.just(max(1, m // 2))))
    most_groups = 70 if m <= 16 else 20 if m <= 64 else 2
    K = m * draw(st.one_of(st.integers(1, min(4, most_groups)), st.integers(1, most_groups)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype, _ = DTYPES[draw(st.sampled_from(list(DTYPES)))]
    with np.errstate(all="ignore"):
        x = draw(st.sampled_from(CONTENTS))(rng, (*draw(st.sampled_from(SHAPES)), K)).astype(np.float32).astype(dtype)
    score = np.ones(K, np.float32)
    if draw(st.booleans()):
        score = np.exp(rng.standard_normal(K)).astype(np.float32)
    shift = np.zeros(K, np.float32)
    if draw(st.booleans()):
        shift = rng.choice([0.0, 0.5, -1.0, 0.3], K).astype(np.float32)
    attributes = {
        "n": n,
        "m": m,
        "shift_mode": draw(st.integers(0, 2)),
        "variance_correction": draw(st.integers(0, 1)),
        "phase": draw(st.integers(0, 2)),
        "strided": draw(st.integers(0, 1)),
    }
    return x, score, shift, attributes


def assert_follows_specification(actual, x, score, shift, attributes):
    """Values and token_shift that one call gave for x."""
    values, token_shift = actual
    _, expected_shift = reference.nm_topk(x, score, shift, **attributes)
    if attributes["shift_mode"] == reference.DYNAMIC_MEAN:
        # A float64 sum in another order differs by its own rounding, which shows where large numbers cancel.
        with np.errstate(all="ignore"):
            magnitude = np.abs(x.astype(np.float64)).max(axis=-1, keepdims=True, initial=0)
            slack = np.where(np.isfinite(magnitude), magnitude * 1e-13, 0) + np.abs(expected_shift) * 2.0**-23 + 1e-45
            close = np.abs(token_shift.astype(np.float64) - expected_shift) <= slack
        close |= (token_shift == expected_shift) | (np.isnan(token_shift) & np.isnan(expected_shift))
        assert token_shift.shape == expected_shift.shape
        assert close.all()
    else:
        np.testing.assert_array_equal(token_shift, expected_shift)
    expected, _ = reference.nm_topk(x, score, shift, **attributes, token_shift=token_shift)
    if not attributes["variance_correction"]:
        assert_identical(values, expected)
        return
    np.testing.assert_array_equal(values == 0, expected == 0)
    epsilon = float(ml_dtypes.finfo(x.dtype).eps)
    smallest = float(ml_dtypes.finfo(x.dtype).smallest_subnormal)
    actual, wanted = values.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_allclose(actual, wanted, rtol=2 * epsilon, atol=smallest)
