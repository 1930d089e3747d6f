"""What callers of the Python interface may hand over, and the sentence when it is something else."""

from pathlib import Path
from typing import Any

from nm_export.errors import UserError


def require_sparse(model: Any, caller: str) -> None:
    """Raise a UserError unless `model` is a sparse model in memory, without an adapter around it."""
    if hasattr(model, "merge_and_unload"):  # PEFT's wrappers hand on nm_modules
        raise UserError(
            f"{caller} takes a sparse model, and this {type(model).__name__} holds an adapter that is not merged; "
            "pass model.merge_and_unload()."
        )
    if hasattr(model, "nm_modules"):
        return
    if hasattr(model, "get_output_embeddings"):  # to ask transformers would be to import it
        raise UserError(f"{caller} takes a sparse model, and this {type(model).__name__} is dense; sparsify it first.")
    hint = ": open a folder with load_exported" if isinstance(model, (str, Path)) else ""
    raise UserError(f"{caller} takes a sparse model in memory, not {named(model)}{hint}.")


def require_count(number: Any, name: str, caller: str) -> None:
    """Raise a UserError unless `number`, the argument called `name`, is a whole number of at least 1."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise UserError(f"{caller}: {name} is {number!r:.60}; it is a whole number from 1.")


def require_folder(folder: Any, caller: str) -> Path:
    """Return a path that was given as text or as one; a UserError for anything else."""
    if not isinstance(folder, (str, Path)):
        raise UserError(f"{caller} takes the path of a folder, not {named(folder)}.")
    return Path(folder)


def named(value: Any) -> str:
    """What a value is, in two words: its contents may fill pages."""
    if value is None or isinstance(value, bool):
        return str(value)
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
