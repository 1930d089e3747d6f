"""Run the reload worker in a process of its own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nm_export.compute_dtype import name_of
from nm_export.errors import NMExportError
from nm_export.sources.checkpoint import stored_tensors

_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_WORKER = Path(__file__).with_name("reload_worker.py")


def reload_and_record(
    folder: Path, ids: Tensor, inputs: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Reload `folder` with its own remote code and return logits `[1, T, V]` and (kept, output) of every pruned linear.

    Args:
        folder: published folder.
        ids: int64 `[1, T]`.
        inputs: of the pruned linears, by name, `[1, T, K]`.
        dtype: type to compute in.

    Raises:
        NMExportError: the folder cannot be reloaded; carries the last line of what Python said.
    """
    with tempfile.TemporaryDirectory(prefix="nm_export-verify-") as directory:
        inputs_file, outputs_file = Path(directory, "inputs.safetensors"), Path(directory, "outputs.safetensors")
        # clones: linears that share an input hold the same tensor, which safetensors refuses to write twice
        save_file({"ids": ids, **{name: x.cpu().clone() for name, x in inputs.items()}}, inputs_file)
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": directory,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        arguments = (_WORKER, folder, inputs_file, outputs_file, torch.get_num_threads(), name_of(dtype))
        command = [sys.executable, *map(str, arguments)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
            raise NMExportError(f"Verification failed: {folder} cannot be reloaded with its own code: {reason}")
        outputs = load_file(outputs_file)
    records = {name: (outputs[f"{name}#kept"], outputs[f"{name}#output"]) for name in inputs}
    return outputs["logits"], records


def check_types(folder: Path, types: Mapping[str, torch.dtype]) -> None:
    """Raise NMExportError if a tensor in the folder's safetensors files has another type than it should.

    Args:
        folder: published folder; weights that it leaves to a base model are known by the hashes of their files.
        types: by the tensors' names.
    """
    for name, tensor in stored_tensors(sorted(folder.glob("*.safetensors"))).items():
        if name in types and tensor.dtype != _TYPES.get(types[name], tensor.dtype):
            raise NMExportError(
                f"Verification failed: {name} is stored as {tensor.dtype} in {tensor.file}, not as "
                f"{_TYPES[types[name]]}."
            )
