"""The weight files of a model folder: safetensors only, inside the folder, and what their headers say."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig

from nm_export.errors import UserError
from nm_export.json_files import parse_json, read_json_object
from nm_export.sources.folder_files import check_no_adapter

MAX_HEADER_BYTES = 32_000_000
"""The header of a model with 100,000 tensors has some 12 MB."""

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.bin.index.json")
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a safetensors header describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path, where: str) -> list[Path]:
    """Return the safetensors files that transformers would load, in order.

    Raises:
        UserError: there are none, only pickles for example; the index names files outside the folder or none that
            exist; or the folder holds an adapter, which names a base model that nobody asked for.
    """
    check_no_adapter(folder, where)
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        return _shards(folder)
    if any(any(folder.glob(pattern)) for pattern in _PICKLES):
        raise UserError(
            f"{where} has no weights as safetensors; its .bin or .pt files are pickles, which can run any code when "
            "they are read, and are not opened: convert the model to safetensors first"
        )
    raise UserError(f"{where} has no weights (*.safetensors)")


def _shards(folder: Path) -> list[Path]:
    index = folder / _INDEX
    shards = read_json_object(index, max_bytes=MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{index} has no weight_map from tensors to files")
    files = []
    for name in sorted(set(shards.values())):
        if Path(name).name != name or "\\" in name or "\0" in name or not name.endswith(".safetensors"):
            raise UserError(f"{index} names {name[:80]!r}, which is no safetensors file of the folder")
        if not (folder / name).is_file():
            raise UserError(f"{index} names {name}, which is missing; download or copy it again")
        files.append(folder / name)
    return files


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Return what the headers of some safetensors files describe, after checking them against the files.

    Raises:
        UserError: naming the first file whose header is damaged or absurd or whose data is cut short, or a tensor that
            is there twice.
    """
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _header(file).items():
            if name in stored:
                other = stored[name].file.name
                raise UserError(f"{file} holds {name[:80]}, which {other} holds too; download or copy the model again")
            stored[name] = tensor
    return stored


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {size:,} bytes")
            content = stream.read(size)
        with safe_open(file, framework="pt"):  # types, shapes, offsets and the size of the file
            pass
    except (SafetensorError, OSError, struct.error, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} is damaged or incomplete ({reason}); download or copy it again") from error
    tensors = parse_json(content, f"the header of {file}")  # safetensors would take the last of equal keys
    return {
        name: StoredTensor(file, entry["dtype"], tuple(entry["shape"]))
        for name, entry in tensors.items()
        if name != "__metadata__"
    }


def check_against(config: PreTrainedConfig, stored: dict[str, StoredTensor], where: str) -> None:
    """Compare a checkpoint with the model that its configuration describes, without memory for a weight.

    Only tensors with the model's own names: what is missing, and what transformers renames, loading tells.

    Raises:
        UserError: there are more layers than tensors, or a tensor has another shape or is no floating-point number.
    """
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > len(stored):
        raise UserError(
            f"{where} cannot be loaded: its configuration says {layers:,} layers, but the checkpoint holds "
            f"{len(stored):,} tensors"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # a configuration that makes no model: loading says so
        return
    for name, parameter in model.named_parameters():
        tensor = stored.get(name)
        if tensor is None:
            continue
        if tensor.shape != tuple(parameter.shape):
            raise UserError(
                f"{where} cannot be loaded: {name} has the shape {list(tensor.shape)} in {tensor.file.name}, and its "
                f"configuration wants {list(parameter.shape)}"
            )
        if tensor.dtype not in _FLOATS:
            raise UserError(
                f"{where} cannot be loaded: {name} is stored as {tensor.dtype} in {tensor.file.name}, not as "
                "floating-point numbers of 16 bits or more; give the unquantized model"
            )
