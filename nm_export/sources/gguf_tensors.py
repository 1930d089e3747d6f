"""What became of the tensors of a GGUF file: transformers takes those that it has names for, and drops the others."""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from nm_export.errors import UserError
from nm_export.sources.checks import check_surplus
from nm_export.tying import is_tied

_ANGLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

_REMEDY = "give the model as safetensors"


def check_gguf_taken(path: Path, model: PreTrainedModel, where: str) -> None:
    """Raise UserError if a GGUF file holds numbers that the model made from it lacks.

    Args:
        path: the file.
        model: what transformers made of it.
        where: it in a few words, for messages.
    """
    from gguf import GGUFReader

    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for name in _ANGLES:
        if name in tensors and not np.all(tensors[name].data == 1):
            raise UserError(
                f"{where} scales the angles of its positions by the tensor {name}, which transformers does not read, "
                f"so that it would be another model; {_REMEDY}"
            )
    counts = {name: int(tensor.n_elements) for name, tensor in tensors.items() if name not in _ANGLES}
    if is_tied(model):
        counts.pop("output.weight", None)
    own = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
    held, taken = sum(counts.values()), sum(own.values())
    if held <= taken:
        return
    known = _names(model)
    surplus = counts.keys() - known if known else set()
    if not surplus:
        raise UserError(f"{where} holds {held:,} numbers, and transformers takes {taken:,} of them; {_REMEDY}")
    check_surplus(surplus, model.config, where, _REMEDY)


def _names(model: Any) -> set[str]:
    """Names of the model's tensors in GGUF, as far as the package gguf knows them."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = model.config.model_type
    arch = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == kind), None)
    if arch is None:
        return set()
    known = get_tensor_name_map(arch, model.config.num_hidden_layers)
    names = set()
    for name in model.state_dict():
        stem, _, last = name.rpartition(".")
        names.add(f"{known.get_name(stem)}.{last}")
    return names
