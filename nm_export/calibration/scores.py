"""Channel scores that come from the weights alone."""

from collections.abc import Iterable

import torch
from torch import Tensor

_ROWS = 1024  # rows squared at a time: float64 copies of whole weights would double the memory of a large model


def weight_norm_score(weights: Iterable[Tensor], exponent: float) -> Tensor:
    """Return `norm2(W[:, j]) ** exponent` over the stacked weights, scaled to mean 1 (arXiv 2505.19427, 2602.14452).

    Args:
        weights: `[O, K]` each, one for every linear that reads the input.
        exponent: 0 gives ones, 1 the norms themselves.

    Returns:
        float32 `[K]`, at least the smallest normal float32.
    """
    squares = sum(
        chunk.double().square().sum(dim=0) for weight in weights for chunk in weight.detach().split(_ROWS, dim=0)
    )
    assert isinstance(squares, Tensor)
    score = squares.sqrt() ** exponent
    return (score / score.mean()).float().clamp_min(torch.finfo(torch.float32).tiny)
