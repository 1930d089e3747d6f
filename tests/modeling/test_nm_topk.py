"""The published PyTorch arithmetic against the specification."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from nm_export.modeling import nm_topk
from tests.kernels.test_agreement import assert_follows_specification, cases

_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float32)).to(_TORCH_DTYPES[x.dtype.name])


def run_torch(x, score, shift, attributes):
    values, token_shift = nm_topk(to_torch(x), torch.from_numpy(score), torch.from_numpy(shift), **attributes)
    assert values.dtype == _TORCH_DTYPES[x.dtype.name]
    return [values.float().numpy().astype(x.dtype), token_shift.numpy()]


@settings(max_examples=1000, deadline=None)
@given(case=cases())
def test_follows_the_specification(case):
    x, score, shift, attributes = case
    assert_follows_specification(run_torch(x, score, shift, attributes), x, score, shift, attributes)


def test_needs_no_score_and_no_shift():
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    with_ones = nm_topk(x, torch.ones(32), torch.zeros(32), n=8, m=16)
    assert torch.equal(nm_topk(x, None, None, n=8, m=16)[0], with_ones[0])


@pytest.mark.parametrize("channels", [0, 24])
def test_refuses_channels_that_m_does_not_divide(channels):
    with pytest.raises(ValueError, match=f"not {channels}"):
        nm_topk(torch.zeros(2, channels), None, None, n=8, m=16)


def test_a_token_does_not_see_its_neighbours():
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    together, shifts = nm_topk(x, None, None, n=2, m=4, shift_mode=1, variance_correction=True)
    for batch in range(2):
        for token in range(5):
            alone, shift = nm_topk(x[batch, token], None, None, n=2, m=4, shift_mode=1, variance_correction=True)
            assert torch.equal(together[batch, token], alone)
            assert torch.equal(shifts[batch, token], shift)


@pytest.mark.parametrize("shift_mode", [0, 1, 2])
@pytest.mark.parametrize("variance_correction", [False, True])
def test_gradient_is_that_of_a_fixed_mask(shift_mode, variance_correction):
    """Against finite differences small enough that no kept channel changes."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 16, generator=generator).requires_grad_()
    direction = torch.randn(2, 16, generator=generator)
    weights = torch.randn(2, 16, generator=generator)

    def prune(at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return nm_topk(at, None, None, n=2, m=4, shift_mode=shift_mode, variance_correction=variance_correction)

    def loss(values: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return (values.double() * weights).sum() + shift.double().sum()

    (gradient,) = torch.autograd.grad(loss(*prune(x)), x)
    step = 1e-3
    with torch.no_grad():
        above, below = prune(x + step * direction), prune(x - step * direction)
        assert torch.equal(above[0] != 0, below[0] != 0)
        difference = (loss(*above) - loss(*below)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=2e-3, abs=2e-3)


def test_gradient_is_finite_where_a_variance_is_zero():
    x = torch.zeros(1, 16, requires_grad=True)
    nm_topk(x, None, None, n=2, m=4, variance_correction=True)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_bfloat16_ties_are_scored_in_float32():
    """256 and 257 are one number in bfloat16: with a score that tells them apart the channels differ."""
    x = np.full((1, 4), 1.0, ml_dtypes.bfloat16)
    score = np.array([1.0, 1.0009765625, 1.0, 1.001953125], np.float32)
    values, _ = run_torch(x, score, np.zeros(4, np.float32), {"n": 2, "m": 4})
    assert (values != 0).tolist() == [[False, True, False, True]]
