"""Open a folder that an export wrote, with the installed package's own classes."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from nm_export.arguments import require_folder
from nm_export.compute_dtype import choose_compute_type
from nm_export.errors import NMExportError, UserError
from nm_export.exported import check_exported
from nm_export.json_files import read_json_object
from nm_export.modeling import NMSparseForCausalLM
from nm_export.publishing.base_weights import base_weights_of
from nm_export.recipe import Recipe
from nm_export.recipe.reading import recipe_of_folder
from nm_export.sources.checkpoint import stored_tensors, weight_files
from nm_export.sources.checks import listed
from nm_export.sources.config_file import check_config_file
from nm_export.tokenizer_files import load_tokenizer


def load_exported(folder: str | Path, *, quick: bool = False) -> tuple[Any, PreTrainedTokenizerBase, Recipe]:
    """Return the sparse model, the tokenizer and the recipe of an exported folder.

    Args:
        folder: the folder.
        quick: whether weights of half precision may be held in float32, where this machine computes so more quickly.

    Raises:
        UserError: the folder was not written by an export, or a file in it is missing or damaged.
    """
    folder = require_folder(folder, "load_exported")
    check_exported(folder)
    check_config_file(folder / "config.json")
    recipe = recipe_of_folder(folder)
    try:
        model = load_sparse(folder, quick=quick)
        tokenizer = load_tokenizer(folder)
    except NMExportError:
        raise
    except Exception as error:  # safetensors, tokenizers and configurations raise errors of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} cannot be loaded ({reason}); write it again with nm-export.") from error
    return model, tokenizer, recipe


def load_sparse(folder: Path, *, quick: bool = False) -> Any:
    """Return the model of an exported folder, in evaluation mode; only a base model's weights may come from elsewhere.

    Args:
        folder: the folder.
        quick: see `load_exported`.

    Raises:
        UserError: the weights that the folder leaves to its base model cannot be had, or have changed; tensors are
            missing, or have no place in the model.
        Exception: what transformers raises.
    """
    options: dict[str, Any] = {
        "dtype": _quick_type(folder) if quick else "auto",
        "use_safetensors": True,
        "output_loading_info": True,
    }
    if base_weights_of(folder) is None:
        stored_tensors(weight_files(folder, str(folder)))
        model, report = NMSparseForCausalLM.from_pretrained(folder, local_files_only=True, **options)
        surplus = report["unexpected_keys"]
    else:
        try:
            model, report = NMSparseForCausalLM.from_pretrained(folder, **options)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
        # the base model's files may hold what the model leaves out; a parameter of sparsity is never theirs
        surplus = [name for name in report["unexpected_keys"] if ".nm_" in name]
    problems = {"lacks": sorted(report["missing_keys"]), "holds, without a place for them,": sorted(surplus)}
    for verb, names in problems.items():
        if names:
            raise UserError(f"{folder} {verb} the tensors {listed(names)}; write it again with nm-export.")
    return model.eval()


def _quick_type(folder: Path) -> torch.dtype | str:
    stored = getattr(torch, str(read_json_object(folder / "config.json").get("dtype")), None)
    if not isinstance(stored, torch.dtype):
        return "auto"
    files = list(folder.glob("*.safetensors"))
    parameters = sum(math.prod(tensor.shape) for tensor in stored_tensors(files).values())
    if elsewhere := base_weights_of(folder):
        parameters += sum(file["size"] for file in elsewhere["files"].values()) // stored.itemsize
    return choose_compute_type("auto", stored, parameters).computed
