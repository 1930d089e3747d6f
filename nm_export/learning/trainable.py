"""Pruned linears whose parameters can be trained, and back.

The choice of channels is a constant of the backward pass: gradients are those of the linear with its kept set fixed.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nm_export.calibration.offload import weights_at_hand
from nm_export.errors import UserError
from nm_export.modeling.modeling_nm_sparse import NMSparseLinear, keep_mask

_BUFFERS = {
    "shift": ("nm_shift",),
    "scale": ("nm_scale",),
    "bias": ("nm_bias",),
    "residual": ("nm_residual_in", "nm_residual_out"),
}


class _Selection:
    """What the linears of one group have kept of the tensor that they read one after the other.

    Args:
        linears: the group; nothing is held any more when all have read.
    """

    def __init__(self, linears: Sequence["TrainedLinear"]) -> None:
        self.readers, self.left = len(linears), 0
        self.with_dropped = any(linear.nm_residual_in is not None for linear in linears)
        self.x: Tensor | None = None
        self.parts: tuple[Tensor, Tensor | None] | None = None

    def of(self, linear: "TrainedLinear", x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return `where(kept, x, e)`, which is `values + e`, and, for residuals, `where(kept, 0, x - e)`."""
        parts = self.parts
        if parts is None or self.x is not x:
            assert linear.nm_shift is not None
            parts = _Pruned.apply(
                x, linear.nm_shift, linear.nm_score, linear.n, linear.m, linear.strided, self.with_dropped
            )
            self.x, self.left = x, self.readers
        self.left -= 1
        self.x, self.parts = (x, parts) if self.left else (None, None)
        return parts


class _Pruned(torch.autograd.Function):
    """`where(kept, x, e)` and, for residuals, `where(kept, 0, x - e)`, with the choice as a constant.

    By hand, because autograd would go through a dozen tensors of x's size in float32. Only shifts `[K]` are trained.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor, score: Tensor | None, n: int, m: int, strided: bool, with_dropped: bool
    ) -> tuple[Tensor, Tensor | None]:
        z = x.float() - shift
        magnitude = z.abs()
        kept = keep_mask(magnitude if score is None else magnitude.mul_(score), n, m, strided)
        ctx.save_for_backward(kept)
        filled = torch.where(kept, x, shift.to(x.dtype))
        return filled, z.masked_fill_(kept, 0.0) if with_dropped else None

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        of_filled, of_dropped = gradients
        (kept,) = ctx.saved_tensors
        of_x = of_shift = None
        if ctx.needs_input_grad[1]:
            moved = of_filled if of_dropped is None else of_filled - of_dropped
            of_shift = moved.masked_fill(kept, 0.0).flatten(0, -2).sum(0, dtype=torch.float32)
        if ctx.needs_input_grad[0]:
            of_x = torch.where(kept, of_filled, 0.0 if of_dropped is None else of_dropped.to(of_filled.dtype))
        return of_x, of_shift, None, None, None, None, None


class TrainedLinear(NMSparseLinear):
    """A pruned linear in training: its shift goes through the weight, so that the shift has a gradient.

    Attributes:
        update: None, or `(B [r, K], A [O, r])`: the weight is `W + A B` while they are trained.
        selection: of the group's linears; one prunes for all.
    """

    update: tuple[Tensor, Tensor] | None
    selection: _Selection

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., K]` to `[..., O]` as `NMSparseLinear` does, in fewer steps where a shift is static."""
        general = self.variance_correction or self.phase != "both" or self.score == "clact_noncausal"
        if not self.enabled or self.nm_shift is None or general:
            return super().forward(x)
        filled, dropped = self.selection.of(self, x)
        y = self.affine(filled)
        if dropped is None or self.nm_residual_in is None or self.nm_residual_out is None:
            return y
        return (y.float() + F.linear(F.linear(dropped, self.nm_residual_in), self.nm_residual_out)).to(y.dtype)

    def product(self, values: Tensor, token_shift: Tensor) -> Tensor:
        """`NMSparseLinear.product` with `e W^T` spelled out: `affine(values + e)`."""
        shift = token_shift if self.nm_shift is None else self.nm_shift
        return self.affine(values if self.nm_offset is None else (values.float() + shift).to(values.dtype))

    def affine(self, x: Tensor) -> Tensor:
        """Return `(x (W + A B)^T) * scale + b + b'`."""
        y = F.linear(x, self.weight)
        if self.update is not None:
            y = y + F.linear(F.linear(x, self.update[0].to(x.dtype)), self.update[1].to(x.dtype))
        bias = self.nm_bias if self.bias is None else self.bias if self.nm_bias is None else self.bias + self.nm_bias
        if self.nm_scale is not None:
            y = y * self.nm_scale if bias is None else torch.addcmul(bias, y, self.nm_scale)  # rounded once
        elif bias is not None:
            y = y + bias
        return y.to(x.dtype)


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
        modules: linears to train, by name; shifts that are one tensor are trained as one.
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
            for buffer, leaf in _trained_buffers(module, parameters):
                if not any(leaf is other for other in found.values()):
                    found[f"{name}.{buffer}"] = leaf
        _share_selections(modules)
        leaves = Leaves(found)
        for leaf in leaves.values():
            leaf.requires_grad_(True)
        yield leaves
        for trained in modules.values():
            _settle(trained, shift_trained=any(trained.nm_shift is leaf for leaf in leaves.values()))
    except BaseException:
        leaves.reset()
        raise
    finally:
        for leaf in leaves.values():
            leaf.requires_grad_(False)
            leaf.grad = None
        for name, trained in modules.items():
            trained.__dict__.pop("update", None)
            trained.__dict__.pop("selection", None)
            trained.__class__ = classes[name]
        for parameter in frozen:
            parameter.requires_grad_(True)


@contextmanager
def shared_shifts(model: Any) -> Iterator[None]:
    """Within the block, the linears of an input group have one shift tensor, so that they go on to prune alike."""
    modules = model.nm_modules()
    groups = [[modules[name] for name in group] for group in model.config.sparsity["input_groups"]]
    for first, *others in groups:
        for other in others:
            other.nm_shift = first.nm_shift
    try:
        yield
    finally:
        for first, *others in groups:
            for other in others:
                other.nm_shift = None if first.nm_shift is None else first.nm_shift.clone()


def _share_selections(modules: Mapping[str, Any]) -> None:
    # linears that prune alike share their shift, see `shared_shifts`
    groups: dict[int, list[Any]] = {}
    for module in modules.values():
        groups.setdefault(id(module if module.nm_shift is None else module.nm_shift), []).append(module)
    for group in groups.values():
        selection = _Selection(group)
        for module in group:
            module.selection = selection


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
