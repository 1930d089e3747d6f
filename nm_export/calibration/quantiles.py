"""Exact quantiles of tensors of any size: `torch.quantile` refuses more than 2^24 elements."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def exact_quantiles(values: Tensor, levels: Sequence[float]) -> list[float]:
    """Return quantiles of all elements, interpolated linearly between neighbours in order, as `numpy.quantile` does.

    Args:
        values: any shape and floating dtype, at least one element, no NaN. Costs one float32 copy of it.
        levels: 0 to 1 each.
    """
    flat = values.detach().reshape(-1).to(device="cpu", dtype=torch.float32).numpy()
    positions = [level * (flat.size - 1) for level in levels]
    below = [int(position) for position in positions]
    above = [min(index + 1, flat.size - 1) for index in below]
    ordered = np.partition(flat, sorted({*below, *above}))
    return [
        float(ordered[low]) + (position - low) * (float(ordered[high]) - float(ordered[low]))
        for position, low, high in zip(positions, below, above, strict=True)
    ]
