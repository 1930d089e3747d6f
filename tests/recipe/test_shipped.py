"""The recipes and the schema that come with the project."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from nm_export.recipe import Recipe, load_recipe, recipe_schema

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert {path.name for path in RECIPES} >= {"smollm2_8of16.yaml", "mistral_8of16.yaml"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.for_module("lm_head") is None
    assert recipe.for_module("model.layers.0.mlp.down_proj") is not None


def test_the_schema_in_docs_is_current() -> None:
    written = json.loads((ROOT / "docs" / "recipe.schema.json").read_text(encoding="utf-8"))
    assert written == recipe_schema(), "run: python -m nm_export.recipe > docs/recipe.schema.json"


def _sections(model: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    return [
        (name, field.annotation) for name, field in model.model_fields.items() if isinstance(field.annotation, type)
    ]


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name, section in _sections(Recipe):
        assert f"## `{name}`" in page
        text = page.split(f"## `{name}`")[1].split("\n## ")[0]
        for key, field in section.model_fields.items():
            assert f"| `{key}` |" in text, f"docs/recipes.md says nothing about {name}.{key}"
            assert field.description, f"{name}.{key} has no docstring"
