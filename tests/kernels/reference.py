"""docs/semantics.md once more, in plain NumPy: one token at a time, slow and obvious.

It shares no code with the implementations, so that they can be tested against it.
"""

import math

import numpy as np

STATIC, DYNAMIC_MEAN, DYNAMIC_MEDIAN = 0, 1, 2
BOTH, PREFILL, DECODE = 0, 1, 2


def keep_mask(s: np.ndarray, n: int, m: int) -> np.ndarray:
    """True for the n highest of every m neighbouring scores of a token. s: [K] float32."""
    kept = np.zeros(s.shape, bool)
    for start in range(0, len(s), m):
        channels = range(start, start + m)
        # NaN above +inf, then the score, then the lower channel.
        ranked = sorted(channels, key=lambda j: (not math.isnan(s[j]), 0.0 if math.isnan(s[j]) else -s[j], j))
        kept[ranked[:n]] = True
    return kept


def strided_keep_mask(s: np.ndarray, n: int, m: int) -> np.ndarray:
    """True for the n highest of the m scores of each group of channels that lie K / m apart."""
    kept = np.zeros(s.shape, bool)
    for first in range(len(s) // m):
        kept[first :: len(s) // m] = keep_mask(s[first :: len(s) // m], n, m)
    return kept


def token_mean(xf: np.ndarray) -> np.float32:
    """The exact mean of a token, rounded once to float32."""
    if not np.isfinite(xf).all():
        return np.float32(np.sum(xf.astype(np.float64)))
    return np.float32(math.fsum(float(v) for v in xf) / len(xf))


def token_median(xf: np.ndarray) -> np.float32:
    """The lower median of a token; NaN if it holds a NaN."""
    if np.isnan(xf).any():
        return np.float32(np.nan)
    return np.sort(xf)[(len(xf) - 1) // 2]


def variance_ratio(z: np.ndarray, p: np.ndarray) -> np.float32:
    """Nu of a token: the square root of Var(z) / Var(p), or 1."""
    dense, sparse = (float(np.mean((v.astype(np.float64) - np.mean(v.astype(np.float64))) ** 2)) for v in (z, p))
    if not math.isfinite(dense) or not math.isfinite(sparse) or dense == 0 or sparse == 0:
        return np.float32(1)
    return np.float32(math.sqrt(dense / sparse))


def is_pruned(shape: tuple[int, ...], phase: int) -> bool:
    """Whether a call with x of this shape is pruned."""
    tokens = shape[-2] if len(shape) > 1 else 1
    return phase == BOTH or (phase == PREFILL and tokens > 1) or (phase == DECODE and tokens == 1)


def nm_topk(
    x: np.ndarray,
    score: np.ndarray,
    shift: np.ndarray,
    *,
    n: int,
    m: int,
    shift_mode: int = STATIC,
    variance_correction: int = 0,
    phase: int = BOTH,
    strided: int = 0,
    token_shift: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """NMTopK: x [..., K] of float32, float16 or bfloat16 (ml_dtypes); score and shift [K] float32.

    Returns values [..., K] of x's dtype and token_shift [..., 1] float32. A given ``token_shift`` takes the place of
    the computed one, for comparing with an implementation that summed in another order.
    """
    K = x.shape[-1]
    if K == 0 or K % m:
        raise ValueError(f"K = {K} is not a positive multiple of M = {m}")
    rows = x.reshape(math.prod(x.shape[:-1]), K)
    values = np.zeros_like(rows)
    shifts = np.zeros((len(rows), 1), np.float32)
    with np.errstate(all="ignore"):
        for t, row in enumerate(rows):
            xf = row.astype(np.float32)
            e: np.ndarray | np.float32 = shift
            if shift_mode != STATIC:
                e = token_mean(xf) if shift_mode == DYNAMIC_MEAN else token_median(xf)
                if token_shift is not None:
                    e = token_shift.reshape(-1)[t]
                shifts[t] = e
            z = xf - e
            if is_pruned(x.shape, phase) and n < m:
                kept = strided_keep_mask(np.abs(z) * score, n, m) if strided else keep_mask(np.abs(z) * score, n, m)
                p = np.where(kept, z, np.float32(0))
                nu = variance_ratio(z, p) if variance_correction else np.float32(1)
            else:
                p, nu = z, np.float32(1)
            values[t] = (nu * p).astype(x.dtype)
    return values.reshape(x.shape), shifts.reshape(*x.shape[:-1], 1)
