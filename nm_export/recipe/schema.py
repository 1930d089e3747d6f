"""JSON schema of the recipe, for editors."""

from typing import Any

from nm_export.recipe.model import Recipe


def recipe_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file."""
    schema = Recipe.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "nm_export recipe"}
