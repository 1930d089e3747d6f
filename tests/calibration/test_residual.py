"""The start of the residual path against numpy's decomposition."""

import numpy as np
import pytest
import torch

from nm_export.calibration import residual
from nm_export.calibration.residual import low_rank_factors


def weight_with_spectrum(rows, columns, decay):
    """A weight whose singular values fall as `k ** -decay`."""
    generator = torch.Generator().manual_seed(0)
    size = min(rows, columns)
    U = torch.linalg.qr(torch.randn(rows, size, generator=generator)).Q
    V = torch.linalg.qr(torch.randn(columns, size, generator=generator)).Q
    return (U * torch.arange(1, size + 1) ** -decay) @ V.T


def test_the_product_is_the_best_of_its_rank_and_the_factors_share_the_spectrum():
    weight = torch.randn(20, 12, generator=torch.Generator().manual_seed(1))
    B, A = low_rank_factors(weight, 4)
    assert (B.shape, A.shape) == ((4, 12), (20, 4))
    U, S, Vt = np.linalg.svd(weight.double().numpy())
    np.testing.assert_allclose((A @ B).numpy(), (U[:, :4] * S[:4]) @ Vt[:4], atol=1e-5)
    np.testing.assert_allclose(A.norm(dim=0).numpy(), np.sqrt(S[:4]), rtol=1e-5)
    np.testing.assert_allclose(B.norm(dim=1).numpy(), np.sqrt(S[:4]), rtol=1e-5)


@pytest.mark.parametrize("decay", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(320, 288), (288, 400)])
def test_large_weights_are_approximated_nearly_as_well(shape, decay, monkeypatch):
    weight = weight_with_spectrum(*shape, decay)
    B, A = low_rank_factors(weight, 16)
    best = (torch.linalg.svdvals(weight)[16:].square().sum()).sqrt()
    assert (weight - A @ B).norm() < 1.01 * best
    monkeypatch.setattr(residual, "_EXACT_UP_TO", 1000)
    assert not torch.equal(low_rank_factors(weight, 16)[0], B)  # the two roads are two


def test_the_result_is_fixed_and_the_global_generator_untouched():
    weight = weight_with_spectrum(300, 280, 0.5)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = low_rank_factors(weight, 8)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first, low_rank_factors(weight, 8), strict=True))


def test_more_rank_than_there_is_adds_nothing():
    weight = torch.randn(3, 8)
    B, A = low_rank_factors(weight.bfloat16(), 5)
    assert B.dtype == A.dtype == torch.float32
    assert not B[3:].any()
    assert not A[:, 3:].any()
    torch.testing.assert_close(A @ B, weight.bfloat16().float())
