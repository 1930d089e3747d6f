"""Write a sparse model and its tokenizer as a folder that transformers reloads."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from nm_export.arguments import named, require_folder, require_sparse
from nm_export.calibration.budget import refuse_open_budget
from nm_export.calibration.neutral import refuse_neutral
from nm_export.compute_dtype import narrowed, say_type_in
from nm_export.errors import UserError
from nm_export.finished import record_written
from nm_export.parameters import check_finite
from nm_export.publishing.folder import replacing
from nm_export.publishing.saved import describe
from nm_export.recipe import PublishSection
from nm_export.recipe.reading import section_from_fields
from nm_export.tokenizer_files import save_tokenizer


def save(
    model: Any,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> Path:
    """Save a sparse model so that `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` reloads it.

    All commands read the folder as they read one of a recipe: recipe.yaml in it describes the schemes, and the card
    says what is known. `nm_export.verify` adds what it finds; without that the folder cannot be published. The folder
    appears whole or not at all.

    Args:
        model: an `NMSparseForCausalLM`.
        folder: folder to write.
        tokenizer: its tokenizer, saved beside it; without one the model can be loaded, and commands that read or write
            text refuse the folder.
        max_shard_size: largest safetensors file, for example "500MB".
        overwrite: whether an earlier export in `folder` may be replaced.

    Raises:
        UserError: the model is not sparse, waits for a budget to be spent or holds parameters that are not finite;
            `folder` is in the way or cannot be written.
    """
    require_sparse(model, "save")
    refuse_open_budget(model, "save")
    refuse_neutral(model, "save")
    size = section_from_fields(PublishSection, {"max_shard_size": max_shard_size}, "save").max_shard_size
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(f"save takes a tokenizer of transformers, not {named(tokenizer)}.")
    target = require_folder(folder, "save").resolve()
    with replacing(target, overwrite=overwrite) as partial:
        write_model(model, tokenizer, partial, size)
        describe(model, partial, target.name)
        record_written(partial, "save")
    return target


def write_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    max_shard_size: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Write weights, configurations, remote code and tokenizer into an existing folder.

    Args:
        model: an `NMSparseForCausalLM`.
        tokenizer: its tokenizer, or None.
        folder: where to write.
        max_shard_size: largest safetensors file.
        dtype: type of the weights in files, where it is not that of the model in memory.

    Raises:
        UserError: a sparsity parameter is not finite.
    """
    check_finite(model)
    if dtype in (None, model.dtype):
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    else:
        model.save_pretrained(folder, max_shard_size=max_shard_size, state_dict=narrowed(model, dtype))
        say_type_in(folder / "config.json", dtype)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
