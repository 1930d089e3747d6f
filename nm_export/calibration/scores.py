"""Channel scores: how much a unit of each input channel matters. Magnitudes are multiplied by them before selection.

Every score is a float32 vector `[K]` of mean 1 with positive elements. Dividing by the mean changes no selection.
"""

import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from nm_export.calibration.quantiles import exact_quantiles

_ROWS, _ELEMENTS = 1024, 1 << 18  # widened at a time at most: whole weights in float64 are as large as some models
_INLIERS = (0.005, 0.995)


def weight_norm_score(weights: Iterable[Tensor], exponent: float) -> Tensor:
    """Return `norm2(W[:, j]) ** exponent` over the stacked weights (arXiv 2505.19427, 2602.14452).

    Args:
        weights: `[O, K]` each, one for every linear that reads the input.
        exponent: 0 gives ones, 1 the norms themselves.
    """
    return _scaled(_column_squares(weights).sqrt() ** exponent)


def amber_score(weights: Iterable[Tensor]) -> Tensor:
    """Return `norm2(What[:, j])`, where `What = (W - mean) / std` of each weight, stacked (Amber, arXiv 2508.02128).

    Mean and standard deviation (population form) are those of the weight's elements between its 0.5 % and 99.5 %
    quantiles, ends included. A weight without spread is only centred.

    Args:
        weights: `[O, K]` each, one for every linear that reads the input.
    """
    total: Tensor | None = None
    for weight in weights:
        mean, std = _inlier_moments(weight)
        squares = sum(((chunk - mean) / std).square().sum(dim=0).cpu() for chunk in _chunks(weight))
        assert isinstance(squares, Tensor)
        total = squares if total is None else total + squares
    assert total is not None
    return _scaled(total.sqrt())


def clact_score(channel_norm: Tensor) -> Tensor:
    """Return the norms of the channels over the calibration tokens, `norm2(X[:, j])` (CLACT of arXiv 2509.22166).

    As published the norms are those of the call, over later tokens too; a norm over the token itself cancels.

    Args:
        channel_norm: `[K]`, float64, not negative.
    """
    return _scaled(channel_norm)


def smoothquant_score(channel_maximum: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """Return `1 / s`, `s_j = sqrt(max |X[:, j]| / max |W[:, j]|)` over the stacked weights (PCS of arXiv 2509.22166).

    Selecting by `|x / s|` is all that `prune(X / s) (s W)^T` does. A channel that was 0 in every token has no finite
    score; it gets the mean of the others.

    Args:
        channel_maximum: `max |X[:, j]|` over the calibration tokens, `[K]`, float64.
        weights: `[O, K]` each, one for every linear that reads the input.
    """
    parts = (part.abs().amax(dim=0).double().cpu() for weight in weights for part in _rows(weight))
    largest = functools.reduce(torch.maximum, parts)
    known = channel_maximum > 0
    score = (largest / torch.where(known, channel_maximum, 1.0)).sqrt()
    return _scaled(torch.where(known, score, score[known].mean() if known.any() else 0.0))


def _scaled(score: Tensor) -> Tensor:
    mean = score.mean()
    if not mean > 0:  # nothing matters: every channel alike
        return torch.ones_like(score, dtype=torch.float32)
    return (score / mean).float().clamp_min(torch.finfo(torch.float32).tiny)


def _rows(weight: Tensor) -> Iterator[Tensor]:
    """Rows of a weight in pieces."""
    return iter(weight.detach().split(min(_ROWS, max(1, _ELEMENTS // weight.shape[1])), dim=0))


def _chunks(weight: Tensor) -> Iterator[Tensor]:
    """Rows of a weight in pieces, float64."""
    return (chunk.double() for chunk in _rows(weight))


def _column_squares(weights: Iterable[Tensor]) -> Tensor:
    squares = sum(chunk.square().sum(dim=0).cpu() for weight in weights for chunk in _chunks(weight))
    assert isinstance(squares, Tensor)
    return squares


def _inlier_moments(weight: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the elements inside the quantiles, in two passes; (mean, 1) without spread."""
    low, high = exact_quantiles(weight, _INLIERS)
    count = total = 0.0
    for chunk, inside in _inliers(weight, low, high):
        count, total = count + int(inside.sum()), total + float(torch.where(inside, chunk, 0.0).sum())
    mean = total / count
    squares = (torch.where(inside, chunk - mean, 0.0).square_() for chunk, inside in _inliers(weight, low, high))
    variance = sum(float(each.sum()) for each in squares) / count
    return mean, variance**0.5 if variance > 0 else 1.0


def _inliers(weight: Tensor, low: float, high: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of a weight in pieces, and which of their elements are inside."""
    return ((chunk, (chunk >= low) & (chunk <= high)) for chunk in _chunks(weight))
