"""The word that a user gives for a recipe: a file, or a model that is exported with the defaults."""

import json
from collections.abc import Sequence
from pathlib import Path

from nm_export.errors import UserError
from nm_export.exported import is_repository, model_type
from nm_export.progress import say
from nm_export.recipe.model import Recipe
from nm_export.recipe.reading import load_recipe, recipe_from_settings
from nm_export.recipe.settings import Setting, split_output_dir

_RECIPES = (".yaml", ".yml")


def name_recipe(word: str, settings: Sequence[str | Setting]) -> tuple[Recipe, str | None]:
    """Return the recipe that a word means, with settings on top, and the folder to write if a setting names it.

    Args:
        word: a recipe file; or a model, which is a recipe of one key: a model folder, a `.gguf` file, `sample:NAME`, or
            the name of a repository, `owner/name`.
        settings: see `load_recipe`.

    Raises:
        UserError: it is neither, or the recipe is not valid; one sentence.
    """
    others, output_dir = split_output_dir(settings)
    if not is_model(word):
        return load_recipe(word, others), output_dir
    recipe = recipe_from_settings([Setting("model.source", json.dumps(word), word), *others])
    sparsity = recipe.sparsity
    say(
        f"{word} is a model, which is a recipe of one key: {sparsity.pattern} by {sparsity.score} and all other "
        "defaults, but for what --set changes (docs/recipes.md)."
    )
    return recipe, output_dir


def is_model(word: str) -> bool:
    """Whether a word names a model rather than a recipe.

    Raises:
        UserError: it names a model that is sparse already.
    """
    path = Path(word).expanduser()
    if path.is_dir():
        kind = model_type(path)
        if kind == "nm_sparse":
            raise UserError(
                f"{word} was exported already; the commands for it are generate, verify, evaluate, bench, card and "
                "publish, and an export takes a recipe or the model that it was made from"
            )
        return kind is not None
    if path.exists() or path.suffix.lower() in _RECIPES:
        return path.suffix.lower() == ".gguf"
    return path.suffix.lower() == ".gguf" or word.startswith("sample:") or is_repository(word)
