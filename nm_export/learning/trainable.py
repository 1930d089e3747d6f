"""Pruned linears whose parameters can be trained, and back.

The choice of channels is a constant of the backward pass: gradients are those of the linear with its kept set fixed.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nm_export.calibration.offload import weights_at_hand
from nm_export.errors import UserError
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


class Leaves(dict[str, Tensor]):
    """Tensors that are trained, float32, by names such as `<module>.nm_shift` and `<module>.update_in`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self._start = {name: leaf.detach().clone() for name, leaf in tensors.items()}

    def reset(self) -> None:
        """Give every leaf the value that it had when the training began."""
        with torch.no_grad():
            for name, leaf in self.items():
                leaf.copy_(self._start[name])


def is_trainable(module: NMSparseLinear, parameters: Collection[str]) -> bool:
    """Whether a pruned linear has any of these parameters; see `trainable`."""
    return "weight" in parameters or any(True for _ in _trained_buffers(module, parameters))


@contextmanager
def trainable(
    model: torch.nn.Module,
    modules: Mapping[str, NMSparseLinear],
    parameters: Collection[str],
    *,
    weight_rank: int = 16,
    seed: int = 0,
) -> Iterator[Leaves]:
    """Within the block, make parameters of pruned linears leaves that an optimiser can train, and freeze all others.

    When the block ends well, updates are added to their weights, in place, and offsets follow shifts and weights. When
    it raises, every parameter is what it was before.

    Args:
        model: model that the linears belong to.
        modules: linears to train, by name.
        parameters: among shift, scale, bias, residual, weight. Scalar shifts are not trained.
        weight_rank: r of the update of each weight.
        seed: of the start of the updates. They begin as 0: one factor is random, the other 0.

    Yields:
        The leaves.

    Raises:
        UserError: a weight is to be trained that Accelerate has offloaded.
    """
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    classes = {name: type(module) for name, module in modules.items()}
    generator = torch.Generator().manual_seed(seed)
    leaves = Leaves({})
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        found: dict[str, Tensor] = {}
        for name, module in modules.items():
            trained: Any = module
            trained.update = _new_update(name, module, weight_rank, generator) if "weight" in parameters else None
            trained.__class__ = TrainedLinear
            if trained.update is not None:
                found[f"{name}.update_in"], found[f"{name}.update_out"] = trained.update
            found |= {f"{name}.{buffer}": leaf for buffer, leaf in _trained_buffers(module, parameters)}
        leaves = Leaves(found)
        for leaf in leaves.values():
            leaf.requires_grad_(True)
        yield leaves
        for name, trained in modules.items():
            _settle(trained, shift_trained=f"{name}.nm_shift" in leaves)
    except BaseException:
        leaves.reset()
        raise
    finally:
        for leaf in leaves.values():
            leaf.requires_grad_(False)
            leaf.grad = None
        for name, trained in modules.items():
            trained.__dict__.pop("update", None)
            trained.__class__ = classes[name]
        for parameter in frozen:
            parameter.requires_grad_(True)


def _trained_buffers(module: NMSparseLinear, parameters: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    for buffer in (buffer for kind in parameters for buffer in _BUFFERS.get(kind, ())):
        leaf = getattr(module, buffer)
        if leaf is not None and not (buffer == "nm_shift" and leaf.numel() == 1):
            yield buffer, leaf


def _new_update(name: str, module: NMSparseLinear, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if module.weight.is_meta:
        raise UserError(f"learning.parameters: the weight of {name} must be in memory to be trained, and is offloaded.")
    device = module.weight.device
    first = torch.randn(rank, module.in_features, generator=generator) / module.in_features**0.5
    return first.to(device), torch.zeros(module.out_features, rank, device=device)


def _settle(module: TrainedLinear, shift_trained: bool) -> None:
    """Put what was trained where `NMSparseLinear` looks for it."""
    changed = shift_trained
    with torch.no_grad():
        if module.update is not None and module.update[1].any():  # adding 0 would turn -0 into 0
            module.weight.copy_(module.weight.float() + module.update[1] @ module.update[0])
            changed = True
    if changed:
        with weights_at_hand([module]):
            module.update_offset()
