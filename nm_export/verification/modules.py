"""Per-module agreement: kept channels equal exactly, outputs to rounding."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nm_export.errors import NMExportError
from nm_export.modeling.modeling_nm_sparse import NMSparseLinear
from nm_export.progress import track
from nm_export.verification.report import ModuleCheck


@dataclass(frozen=True)
class ModuleRecord:
    """What one pruned linear does with `T` tokens at once and then with the last of them alone, as in decoding.

    Attributes:
        kept: bool `[1, T + 1, K]`, channels that are not zero after pruning.
        output: `[1, T + 1, O]`.
    """

    kept: Tensor
    output: Tensor


def capture_inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Run the sparse model on ids `[1, T]` and return the input `[1, tokens, K]` of every pruned linear, by name.

    Some architectures give a linear a list of tokens `[tokens, K]`, and an expert those that it is chosen for; linears
    that no token reaches are left out.
    """
    inputs: dict[str, Tensor] = {}

    def note(name: str, x: Tensor) -> None:
        if x.numel():
            inputs[name] = x[None] if x.dim() == 2 else x

    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name, module in model.nm_modules().items()
    ]
    try:
        with torch.no_grad():
            model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def record_modules(model: Any, inputs: Mapping[str, Tensor], *, widened: bool = False) -> dict[str, ModuleRecord]:
    """Feed each pruned linear its input `[1, T, K]` and record what it keeps and computes.

    Args:
        model: the sparse model.
        inputs: of its pruned linears, by name.
        widened: whether to compute in float32, as graphs do, whatever the model's dtype: a module of bfloat16 rounds
            its outputs to three digits. One module at a time is widened.
    """
    modules = model.nm_modules()
    records = {}
    with torch.no_grad():
        for name, x in track(inputs.items(), "Checking modules", total=len(inputs)):
            module = _widened(modules[name]) if widened else modules[name]
            calls = (x.float(), x[:, -1:].float()) if widened else (x, x[:, -1:])
            kept = torch.cat([module.prune(call)[0] != 0 for call in calls], dim=1)
            output = torch.cat([module(call) for call in calls], dim=1)
            records[name] = ModuleRecord(kept.cpu(), output.cpu())
    return records


def _widened(module: NMSparseLinear) -> NMSparseLinear:
    twin = copy.copy(module)
    twin._parameters = {
        name: p if p is None else torch.nn.Parameter(p.detach().float(), requires_grad=False)
        for name, p in module._parameters.items()
    }
    return twin


def check_modules(
    backend: str,
    expected: Mapping[str, ModuleRecord],
    actual: Mapping[str, tuple[Any, Any]],
    tolerance: float,
) -> ModuleCheck:
    """Compare a backend with the reference, module by module.

    Args:
        backend: name for messages.
        expected: the reference's records.
        actual: kept channels and outputs of the backend, arrays or tensors of the same shapes.
        tolerance: largest output difference, relative to the largest output of the module.

    Raises:
        NMExportError: the first module that is missing, keeps other channels, or computes other outputs.
    """
    largest = 0.0
    for name, record in expected.items():
        if name not in actual:
            raise NMExportError(f"Verification failed: {backend} has no module {name}.")
        kept, output = (torch.as_tensor(part) for part in actual[name])
        if not torch.equal(kept.bool(), record.kept):
            different = int((kept.bool() != record.kept).sum())
            raise NMExportError(
                f"Verification failed: {backend} keeps other channels than the calibrated model in {name} "
                f"({different} of {record.kept.numel()} differ)."
            )
        scale = float(record.output.abs().max()) or 1.0
        error = float((output.float() - record.output.float()).abs().max()) / scale
        if not error <= tolerance:  # NaN fails too
            raise NMExportError(
                f"Verification failed: outputs of {name} in {backend} differ by {error:.2e} of the largest output; "
                f"verify.output_tolerance allows {tolerance:.0e}."
            )
        largest = max(largest, error)
    return ModuleCheck(modules=len(expected), kept_channels_equal=True, largest_error=largest)
