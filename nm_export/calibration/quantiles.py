"""Exact quantiles of tensors of any size: `torch.quantile` refuses more than 2^24 elements, and sorts a copy."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 18  # elements looked at together
_HALF = 1 << 16  # values of half of an element's bits


def exact_quantiles(values: Tensor, levels: Sequence[float]) -> list[float]:
    """Return quantiles of all elements, interpolated linearly between neighbours in order, as `numpy.quantile` does.

    Elements are counted by the upper and then by the lower half of their bits; no copy of the tensor is made.

    Args:
        values: any shape and floating dtype, at least one element, no NaN. Types wider than float32 are rounded to it.
        levels: 0 to 1 each.
    """
    flat = values.detach().reshape(-1)
    positions = [level * (len(flat) - 1) for level in levels]
    below = [int(position) for position in positions]
    above = [min(index + 1, len(flat) - 1) for index in below]
    ordered = _order_statistics(flat, {*below, *above})
    return [
        ordered[low] + (position - low) * (ordered[high] - ordered[low])
        for position, low, high in zip(positions, below, above, strict=True)
    ]


def _order_statistics(flat: Tensor, ranks: Iterable[int]) -> dict[int, float]:
    """The elements at some places of the sorted tensor."""
    counts = np.zeros(_HALF, np.int64)
    for upper, _ in _halves(flat):
        counts += np.bincount(upper, minlength=_HALF)
    halves = np.r_[_HALF - 1 : _HALF // 2 - 1 : -1, 0 : _HALF // 2]  # the largest negative number has the largest bits
    ends = counts[halves].cumsum()
    place_of = {rank: int(np.searchsorted(ends, rank, side="right")) for rank in ranks}
    lower_counts = {int(halves[place]): np.zeros(_HALF, np.int64) for place in place_of.values()}
    for upper, lower in _halves(flat):
        for half, of_half in lower_counts.items():
            of_half += np.bincount(lower[upper == half], minlength=_HALF)
    found = {}
    for rank, place in place_of.items():
        half, inside = int(halves[place]), rank - int(ends[place] - counts[halves[place]])
        if half < _HALF // 2:
            low = int(np.searchsorted(lower_counts[half].cumsum(), inside, side="right"))
        else:
            low = _HALF - 1 - int(np.searchsorted(lower_counts[half][::-1].cumsum(), inside, side="right"))
        found[rank] = float(np.array(half << 16 | low, np.uint32).view(np.float32))
    return found


def _halves(flat: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The upper and the lower 16 bits of the elements as float32, uint16, a part of the tensor at a time."""
    for chunk in flat.split(_CHUNK):
        bits = chunk.to(device="cpu", dtype=torch.float32).numpy().view(np.uint32)
        yield (bits >> 16).astype(np.uint16), bits.astype(np.uint16)
