"""Recipe files and `--set` settings -> a validated Recipe, or one sentence that says what to change."""

import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nm_export.arguments import named
from nm_export.errors import UserError
from nm_export.recipe.model import Recipe
from nm_export.recipe.sections import Section
from nm_export.recipe.settings import Setting, apply_settings
from nm_export.recipe.yaml_values import MAX_CHARACTERS, KeyPath, dotted, parse_yaml

S = TypeVar("S", bound=Section)


def load_recipe(path: str | Path, overrides: Sequence[str | Setting] = (), *, runs: bool = True) -> Recipe:
    """Read a recipe file and apply settings `key.path=value` (values in YAML) on top of it.

    A dataset that is set takes the place of the file's, with its subset, split, column and revision. Relative paths
    inside the recipe are relative to the working directory.

    Args:
        path: the file.
        overrides: settings, in order.
        runs: whether the recipe is to be run. One that describes a model made in Python may say what no run can do:
            a score of the caller's own, or a learned parameter that the caller's own loop has trained.

    Raises:
        UserError: one sentence naming file, line and key.
    """
    if not isinstance(path, (str, Path)):
        raise UserError(f"load_recipe takes the path of a recipe, not {named(path)}.")
    path = Path(path)
    origin = str(path)
    values, lines = parse_yaml(_read(path), origin)
    if values is None:
        raise UserError(f"{origin}: the file is empty; a recipe needs at least model.source")
    if not isinstance(values, dict):
        raise UserError(f"{origin}: a recipe is a mapping of sections (model:, sparsity:, ...), not {_kind(values)}")
    return _validate(values, origin, lines, apply_settings(values, overrides), runs=runs)


def recipe_of_folder(folder: Path) -> Recipe:
    """Read the recipe of an exported or saved folder, which describes what is there. Raises as `load_recipe` does."""
    return load_recipe(folder / "recipe.yaml", runs=False)


def section_from_fields(section: type[S], fields: Mapping[str, Any], caller: str) -> S:
    """Make a section of a recipe from keyword arguments of the function called `caller`.

    Raises:
        UserError: the sentence that a recipe file with these values would get.
    """
    try:
        return section.model_validate(dict(fields))
    except ValidationError as error:
        errors = error.errors(include_url=False)
    first, more = _worst(errors)
    raise UserError(f"{caller}: {_sentence(first, tuple(first['loc']), section)}{more}")


def recipe_from_settings(settings: Sequence[str | Setting]) -> Recipe:
    """A recipe without a file. Raises UserError, one sentence naming the setting."""
    values: dict[str, Any] = {}
    return _validate(values, "recipe", {}, apply_settings(values, settings))


def parse_recipe(text: str, origin: str = "recipe") -> Recipe:
    """Read a recipe from YAML text. Raises UserError as `load_recipe` does."""
    values, lines = parse_yaml(text, origin)
    if not isinstance(values, dict):
        raise UserError(f"{origin}: a recipe is a mapping of sections (model:, sparsity:, ...), not {_kind(values)}")
    return _validate(values, origin, lines, {})


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(4 * MAX_CHARACTERS + 1)
    except FileNotFoundError:
        nearby = sorted(str(other) for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        nearest = difflib.get_close_matches(str(path), nearby, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]}?" if nearest else "; give a YAML file that names a model (docs/recipes.md)"
        raise UserError(f"{path}: there is no such recipe file{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, and holds no model; give a recipe, which is a file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: the recipe cannot be read: {reason}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 text file (byte {error.start}); is this the right file?") from error


def _validate(
    values: dict[str, Any],
    origin: str,
    lines: dict[KeyPath, int],
    settings: dict[KeyPath, str],
    *,
    runs: bool = True,
) -> Recipe:
    # An empty section (a header whose keys are all commented out) means its defaults.
    values = {key: {} if value is None and key in _SECTIONS else value for key, value in values.items()}
    try:
        return Recipe.model_validate(values, context={"runs": runs})
    except ValidationError as error:
        errors = error.errors(include_url=False)
    first, more = _worst(errors)
    path = tuple(first["loc"])
    # a setting is to blame for what it has set, and for what had to be made to hold it
    where = next((text for key, text in settings.items() if path[: len(key)] == key), None)
    where = where or next((text for key, text in settings.items() if key[: len(path)] == path not in lines), None)
    if where is None:
        line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
        where = origin if line is None else f"{origin}, line {line}"
    raise UserError(f"{where}: {_sentence(first, path)}{more}")


def _worst(errors: Sequence[ErrorDetails]) -> tuple[ErrorDetails, str]:
    """The error to tell, and in brackets how many there are besides."""
    first = min(errors, key=lambda details: details["type"] != "extra_forbidden")
    return first, f" (and {len(errors) - 1} more to correct)" if len(errors) > 1 else ""


def _sentence(error: ErrorDetails, path: KeyPath, root: type[BaseModel] = Recipe) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {dotted(path)}{_nearest(str(path[-1]), _known_keys(path[:-1], root))}"
    if kind == "missing":
        return f"{dotted(path)} is missing"
    if kind == "value_error":
        return f"{dotted(path)}: {context['error']}" if path else str(context["error"])
    if kind == "literal_error":
        choices = context["expected"].replace("'", "")
        words = choices.replace(" or ", ", ").split(", ")
        given = error["input"]
        return f"{dotted(path)} is {_shown(given)}; it must be {choices}{_nearest(str(given)[:60], words, '')}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{dotted(path)} is {_kind(error['input'])}; it must be a mapping of keys"
    if kind == "too_short":
        return f"{dotted(path)} is empty; give at least one entry"
    given = error["input"]
    message = error["msg"].replace("tuple", "list")
    return f"{dotted(path)} is {_shown(given)}: {message[:1].lower()}{message[1:]}"


def _nearest(word: str, known: Sequence[str], otherwise: str | None = None) -> str:
    nearest = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    if nearest:
        return f"; did you mean {nearest[0]}?"
    return f"; known keys are {', '.join(known)}" if otherwise is None else otherwise


def _known_keys(path: KeyPath, root: type[BaseModel]) -> list[str]:
    """Keys that the section at `path` takes."""
    section = root
    for part in path:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_type(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    """The section inside an annotation such as `ModelSection` or `tuple[Override, ...]`."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, list, Union, types.UnionType):
        return next((found for arg in get_args(annotation) if (found := _section_type(arg))), None)
    return None


_SECTIONS = {name for name, field in Recipe.model_fields.items() if _section_type(field.annotation)} - {"model"}


def _shown(value: object) -> str:
    return repr(value)[:80] if isinstance(value, str) else _kind(value)


def _kind(value: object) -> str:
    return {dict: "a mapping", list: "a list", type(None): "empty"}.get(type(value), "a single value")
