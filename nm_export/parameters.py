"""What calibration and learning have made of a sparse model, as a file: its parameters and rewritten weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nm_export.errors import UserError
from nm_export.whole_file import sync


def check_finite(model: Any) -> None:
    """Raise a UserError if a sparsity parameter of a sparse model holds NaN or infinite values."""
    for name, buffer in model.named_buffers():
        if ".nm_" in name and not buffer.is_meta and not bool(buffer.isfinite().all()):
            raise UserError(f"{name} holds NaN or infinite values; calibrate the model again.")


def save_parameters(model: Any, path: Path) -> None:
    """Write the `nm_*` buffers and rewritten weights of an `NMSparseForCausalLM`, whole or not at all."""
    rewritten = set(model.config.sparsity["rewritten"])
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if ".nm_" in name or name in rewritten
    }
    scratch = path.with_name(f".{path.name}")
    # one string: the order of several would change from run to run
    save_file(tensors, scratch, metadata={"sparsity": json.dumps(model.config.sparsity, sort_keys=True)})
    sync([scratch])
    scratch.replace(path)


def load_parameters(model: Any, path: Path) -> None:
    """Give a sparse model, in place, what `save_parameters` wrote of one that was made from the same dense model."""
    with safe_open(path, "pt") as file:
        sparsity = json.loads(file.metadata()["sparsity"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    model.config.sparsity["rewritten"] = sparsity["rewritten"]
