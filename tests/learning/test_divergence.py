"""The divergence and its gradient, against autograd through torch's own."""

import pytest
import torch
from torch.nn import functional as F

from nm_export.learning.divergence import divergence


def _logits(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    own, expected = (3 * torch.randn(3, 13, 50, generator=generator) for _ in range(2))
    own[0, 0] += 1e4  # far from 0: a softmax must not overflow
    expected[1, 1, 7] = 90.0  # certain of one token
    return own.to(dtype).requires_grad_(), expected.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_value_and_gradient_are_torchs(dtype: torch.dtype, tolerance: float) -> None:
    own, expected = _logits(dtype)
    reference = own.detach().double().requires_grad_()
    log_p, log_q = expected.double().log_softmax(-1), reference.log_softmax(-1)
    (2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean()).backward()
    value = divergence(own, expected)
    (2 * value).backward()
    assert value.dtype == torch.float32
    assert own.grad.dtype == dtype
    torch.testing.assert_close(own.grad.double(), reference.grad, rtol=tolerance, atol=tolerance * 1e-2)
    with torch.no_grad():
        assert float(divergence(own, expected)) == float(value)
        assert float(divergence(expected, expected)) == 0


def test_what_is_nan_stays_nan() -> None:
    own, expected = _logits(torch.float32)
    with torch.no_grad():
        own[2, 12, 3] = float("nan")
    value = divergence(own, expected)
    value.backward()
    assert value.isnan()
    assert own.grad[2, 12].isnan().any()
