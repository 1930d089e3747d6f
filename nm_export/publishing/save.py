"""Write a sparse model and its tokenizer as a folder that transformers reloads."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from nm_export.finished import record_written
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
        record_written(partial, "save")
    return target


def write_model(model: Any, tokenizer: PreTrainedTokenizerBase | None, folder: Path, max_shard_size: str) -> None:
    """Write weights, configurations, remote code and tokenizer into an existing folder."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
