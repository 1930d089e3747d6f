"""Low-rank start of the residual path: what the best rank-r stand-in of a weight does to the dropped part."""

import torch
from torch import Tensor

_EXACT_UP_TO = 256  # smaller side of a weight whose full decomposition is cheaper than iterating
_OVERSAMPLING = 16
_ITERATIONS = 4


def low_rank_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Split a weight's best approximation of rank r, `W ~ A B` with `A = U S^1/2` and `B = S^1/2 V^T` (R-Sparse).

    Large weights are decomposed by randomised subspace iteration (Halko et al., arXiv 0909.4061) from a fixed start, so
    that the result is the same in every run on one machine. Source: arXiv 2504.19449.

    Args:
        weight: `[O, K]`.
        rank: r; directions beyond min(O, K) are zeros.

    Returns:
        B `[r, K]` and A `[O, r]`, float32, on the weight's device.
    """
    exact = weight.detach().float()
    smaller = min(exact.shape)
    if smaller <= max(_EXACT_UP_TO, rank + _OVERSAMPLING):
        U, S, Vt = torch.linalg.svd(exact, full_matrices=False)
    else:
        U, S, Vt = _randomised_svd(exact, rank + _OVERSAMPLING)
    kept = min(rank, smaller)
    root = S[:kept].sqrt()
    B = exact.new_zeros(rank, exact.shape[1])
    A = exact.new_zeros(exact.shape[0], rank)
    B[:kept] = root.unsqueeze(1) * Vt[:kept]
    A[:, :kept] = U[:, :kept] * root
    return B, A


def _randomised_svd(weight: Tensor, directions: int) -> tuple[Tensor, Tensor, Tensor]:
    # not torch.svd_lowrank: it draws from the global generator
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(weight.shape[1], directions, generator=generator).to(weight.device)
    basis = torch.linalg.qr(weight @ start).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ basis).Q).Q
    U, S, Vt = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    return basis @ U, S, Vt
