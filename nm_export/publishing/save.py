"""Write a sparse model and its tokenizer as a folder that transformers reloads."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from nm_export.compute_dtype import narrowed, say_type_in
from nm_export.publishing.folder import replacing
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

    The folder appears whole or not at all.

    Args:
        model: an `NMSparseForCausalLM`.
        folder: folder to write.
        tokenizer: its tokenizer, saved beside it.
        max_shard_size: largest safetensors file.
        overwrite: whether an earlier export in `folder` may be replaced.

    Raises:
        UserError: `folder` is in the way or cannot be written.
    """
    target = Path(folder).resolve()
    with replacing(target, overwrite=overwrite) as partial:
        write_model(model, tokenizer, partial, max_shard_size)
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
    """
    if dtype in (None, model.dtype):
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    else:
        model.save_pretrained(folder, max_shard_size=max_shard_size, state_dict=narrowed(model, dtype))
        say_type_in(folder / "config.json", dtype)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
