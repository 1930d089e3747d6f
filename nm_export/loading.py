"""Open a folder that an export wrote, with the installed package's own classes."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from nm_export.arguments import require_folder
from nm_export.errors import NMExportError, UserError
from nm_export.exported import check_exported
from nm_export.modeling import NMSparseForCausalLM
from nm_export.publishing.base_weights import base_weights_of
from nm_export.recipe import Recipe
from nm_export.recipe.reading import recipe_of_folder
from nm_export.sources.checkpoint import stored_tensors, weight_files
from nm_export.sources.config_file import check_config_file
from nm_export.tokenizer_files import load_tokenizer


def load_exported(folder: str | Path) -> tuple[Any, PreTrainedTokenizerBase, Recipe]:
    """Return the sparse model, the tokenizer and the recipe of an exported folder.

    Raises:
        UserError: the folder was not written by an export, or a file in it is missing or damaged.
    """
    folder = require_folder(folder, "load_exported")
    check_exported(folder)
    check_config_file(folder / "config.json")
    recipe = recipe_of_folder(folder)
    try:
        model = load_sparse(folder)
        tokenizer = load_tokenizer(folder)
    except NMExportError:
        raise
    except Exception as error:  # safetensors, tokenizers and configurations raise errors of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} cannot be loaded ({reason}); write it again with nm-export.") from error
    return model, tokenizer, recipe


def load_sparse(folder: Path) -> Any:
    """Return the model of an exported folder, in evaluation mode; only a base model's weights may come from elsewhere.

    Raises:
        UserError: the weights that the folder leaves to its base model cannot be had, or have changed.
        Exception: what transformers raises.
    """
    if base_weights_of(folder) is None:
        stored_tensors(weight_files(folder, str(folder)))
        options = {"local_files_only": True, "use_safetensors": True}
        return NMSparseForCausalLM.from_pretrained(folder, dtype="auto", **options).eval()
    try:
        return NMSparseForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
