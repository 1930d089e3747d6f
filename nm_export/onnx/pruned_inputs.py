"""What an exporter needs to know of a sparse model: the inputs that are pruned, and the constants of their linears."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nm_export.errors import NMExportError, UserError
from nm_export.modeling.modeling_nm_sparse import PHASES, SHIFT_MODES, NMSparseLinear


@dataclass(frozen=True)
class PrunedLinear:
    """The constants of one linear that reads a pruned input, float32; None where it has none:

        y = values (scale * W)^T + token_shift * offset + b + bias + (dropped residual_in^T) residual_out^T

    Attributes:
        name: of the module.
        scale: `[O]`.
        offset: `[O]`: scaled `W 1`, for a dynamic shift.
        bias: `[O]`, what is added to the module's own bias b: b' and the scaled `W e` of a static shift.
        residual_in: `[r, K]`.
        residual_out: `[O, r]`.
    """

    name: str
    scale: np.ndarray | None = None
    offset: np.ndarray | None = None
    bias: np.ndarray | None = None
    residual_in: np.ndarray | None = None
    residual_out: np.ndarray | None = None

    def rows(self, start: int, stop: int) -> "PrunedLinear":
        """The part of the linear that computes some of its outputs."""
        parts = [None if a is None else a[start:stop] for a in (self.scale, self.offset, self.bias, self.residual_out)]
        scale, offset, bias, residual_out = parts
        return PrunedLinear(self.name, scale, offset, bias, self.residual_in, residual_out)


@dataclass(frozen=True)
class PrunedInput:
    """One input that is pruned once, and the linears that read it.

    Attributes:
        linears: in the order of the model.
        attributes: attributes of the `NMTopK` node.
        score: float32 `[K]`, or None for ones.
        shift: static, float32 `[K]`, or None for zeros.
    """

    linears: tuple[PrunedLinear, ...]
    attributes: Mapping[str, int]
    score: np.ndarray | None = None
    shift: np.ndarray | None = None

    @property
    def dynamic(self) -> bool:
        """Whether the shift is the token's own."""
        return self.attributes["shift_mode"] > 0


def pruned_inputs(model: Any) -> list[PrunedInput]:
    """Read off a sparse model what is pruned together, in the order of its modules.

    Args:
        model: an `NMSparseForCausalLM`, whose config names the groups in `sparsity["input_groups"]`. Linears with
            pruned weights are plain linears: they are not among the answers.

    Raises:
        UserError: a module's score cannot be computed in ONNX.
        NMExportError: linears of one group do not agree on how to prune their input.
    """
    modules: dict[str, NMSparseLinear] = model.nm_modules()
    group_of = {name: tuple(group) for group in model.config.sparsity["input_groups"] for name in group}
    inputs: dict[str, PrunedInput] = {}
    for name in modules:
        names = tuple(n for n in modules if n in group_of.get(name, (name,)))
        if names[0] in inputs:
            continue
        first, *others = members = [_pruned_input(n, modules[n]) for n in names]
        for other_name, other in zip(names[1:], others, strict=True):
            if not _prunes_alike(first, other):
                raise NMExportError(
                    f"{other_name} shares its input with {names[0]} but prunes it in another way: "
                    "recalibrate the model, or take it out of sparsity.input_groups."
                )
        linears = tuple(linear for member in members for linear in member.linears)
        inputs[names[0]] = PrunedInput(linears, first.attributes, first.score, first.shift)
    return list(inputs.values())


def _pruned_input(name: str, module: NMSparseLinear) -> PrunedInput:
    if module.score == "clact_noncausal":
        raise UserError(
            f"{name} cannot be exported to ONNX: its score clact_noncausal depends on all tokens of a call, later ones "
            "and other rows of the batch included. Use score: clact, or leave ONNX out (--skip-onnx)."
        )
    attributes = {
        "n": module.n,
        "m": module.m,
        "shift_mode": SHIFT_MODES[module.shift],
        "variance_correction": int(module.variance_correction),
        "phase": PHASES[module.phase],
        "strided": int(module.strided),
    }
    shift = _array(module.nm_shift)
    if shift is not None:
        shift = np.broadcast_to(shift, (module.in_features,))
    return PrunedInput((_pruned_linear(name, module),), attributes, _array(module.nm_score), shift)


def _pruned_linear(name: str, module: NMSparseLinear) -> PrunedLinear:
    module.update_offset()  # whoever has changed weights since
    scale, offset, bias = _array(module.nm_scale), _array(module.nm_offset), _array(module.nm_bias)
    if offset is not None and scale is not None:
        offset = offset * scale
    if not SHIFT_MODES[module.shift]:
        bias = offset if bias is None else bias if offset is None else bias + offset
        offset = None
    return PrunedLinear(name, scale, offset, bias, _array(module.nm_residual_in), _array(module.nm_residual_out))


def _array(buffer: Any) -> np.ndarray | None:
    return None if buffer is None else buffer.detach().cpu().float().numpy()


def _prunes_alike(a: PrunedInput, b: PrunedInput) -> bool:
    def same(left: np.ndarray | None, right: np.ndarray | None) -> bool:
        return left is right if left is None or right is None else np.array_equal(left, right)

    return a.attributes == b.attributes and same(a.score, b.score) and same(a.shift, b.shift)
