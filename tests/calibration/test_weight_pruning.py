"""Static N:M sparsity of weights against a plain statement of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nm_export.calibration import weight_pruning
from nm_export.calibration.weight_pruning import prune_weight_


def expected(weight, n, m):
    rows = [list(row) for row in weight.tolist()]
    for row in rows:
        for first in range(0, len(row), m):
            group = range(first, first + m)
            kept = sorted(group, key=lambda channel: (-abs(row[channel]), channel))[:n]
            for channel in set(group) - set(kept):
                row[channel] = 0.0
    return torch.tensor(rows, dtype=weight.dtype)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 99),
    pattern=st.sampled_from([(1, 2), (2, 4), (8, 16), (1, 1), (3, 3), (5, 8)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    elements=st.sampled_from([1, 100, 1 << 22]),
)
def test_the_smallest_of_each_group_are_zeroed(seed, pattern, dtype, elements):
    n, m = pattern
    # small whole numbers: full of ties
    weight = torch.randint(-3, 4, (6, 3 * m), generator=torch.Generator().manual_seed(seed)).to(dtype)
    want, storage = expected(weight, n, m), weight.data_ptr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_pruning, "_ELEMENTS", elements)
        prune_weight_(weight, n, m)
    assert torch.equal(weight, want)
    assert weight.data_ptr() == storage


def test_a_parameter_is_pruned_in_place_and_twice_is_once():
    linear = torch.nn.Linear(32, 5)
    prune_weight_(linear.weight, 8, 16)
    once = linear.weight.detach().clone()
    assert ((once == 0).sum(dim=1) == 16).all()
    prune_weight_(linear.weight, 8, 16)
    assert torch.equal(linear.weight, once)
    assert linear.weight.requires_grad
