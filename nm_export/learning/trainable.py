"""Pruned linears whose parameters can be trained, and back.

The choice of channels is a constant of the backward pass: gradients are those of the linear with its kept set fixed.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nm_export.modeling.modeling_nm_sparse import NMSparseLinear

_BUFFERS = {
    "shift": ("nm_shift",),
    "scale": ("nm_scale",),
    "bias": ("nm_bias",),
    "residual": ("nm_residual_in", "nm_residual_out"),
}


class TrainedLinear(NMSparseLinear):
    """A pruned linear in training: its shift goes through the weight, so that the shift has a gradient.

    Attributes:
        update: None, or `(B [r, K], A [O, r])`: the weight is `W + A B` while they are trained.
    """

    update: tuple[Tensor, Tensor] | None

    def product(self, values: Tensor, token_shift: Tensor) -> Tensor:
        """Return `((values + e) (W + A B)^T) * scale + b + b'`: `NMSparseLinear.product` with `e W^T` spelled out."""
        shift = token_shift if self.nm_shift is None else self.nm_shift
        x = values if self.nm_offset is None else (values.float() + shift).to(values.dtype)
        y = F.linear(x, self.weight)
        if self.update is not None:
            y = y + F.linear(F.linear(x, self.update[0].to(x.dtype)), self.update[1].to(x.dtype))
        if self.nm_scale is not None:
            y = y * self.nm_scale
        for bias in (self.bias, self.nm_bias):
            y = y if bias is None else y + bias
        return y.to(values.dtype)


@contextmanager
def trainable(
    model: torch.nn.Module,
    modules: Mapping[str, NMSparseLinear],
    parameters: Collection[str],
    *,
    weight_rank: int = 16,
    seed: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Within the block, make parameters of pruned linears leaves that an optimiser can train, and freeze all others.

    When the block ends well, updates are added to their weights, in place. Offsets follow the shifts and weights in
    any case.

    Args:
        model: model that the linears belong to.
        modules: linears to train, by name.
        parameters: among shift, scale, bias, residual, weight. Scalar shifts are not trained.
        weight_rank: r of the update of each weight.
        seed: of the start of the updates. They begin as 0: one factor is random, the other 0.

    Yields:
        The leaves, float32, by names such as `<module>.nm_shift` and `<module>.update_in`.
    """
    generator = torch.Generator().manual_seed(seed)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    classes = {name: type(module) for name, module in modules.items()}
    leaves: dict[str, Tensor] = {}
    for parameter in frozen:
        parameter.requires_grad_(False)
    for name, module in modules.items():
        trained: Any = module
        trained.__class__ = TrainedLinear
        trained.update = _new_update(module, weight_rank, generator) if "weight" in parameters else None
        if trained.update is not None:
            leaves[f"{name}.update_in"], leaves[f"{name}.update_out"] = trained.update
        for buffer in (buffer for kind in parameters for buffer in _BUFFERS.get(kind, ())):
            leaf = getattr(module, buffer)
            if leaf is not None and not (buffer == "nm_shift" and leaf.numel() == 1):
                leaves[f"{name}.{buffer}"] = leaf
    try:
        for leaf in leaves.values():
            leaf.requires_grad_(True)
        yield leaves
        with torch.no_grad():
            for trained in modules.values():
                if trained.update is not None:
                    trained.weight += (trained.update[1] @ trained.update[0]).to(trained.weight.dtype)
    finally:
        for leaf in leaves.values():
            leaf.requires_grad_(False)
            leaf.grad = None
        for name, trained in modules.items():
            del trained.update
            trained.__class__ = classes[name]
            trained.update_offset()
        for parameter in frozen:
            parameter.requires_grad_(True)


def _new_update(module: NMSparseLinear, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    device = module.weight.device
    first = torch.randn(rank, module.in_features, generator=generator) / module.in_features**0.5
    return first.to(device), torch.zeros(module.out_features, rank, device=device)
