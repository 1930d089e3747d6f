"""Recipes: what to export, validated. `load_recipe` reads YAML; `Recipe(...)` needs none."""

from nm_export.recipe.model import Recipe
from nm_export.recipe.reading import load_recipe, parse_recipe, recipe_from_settings
from nm_export.recipe.schema import recipe_schema
from nm_export.recipe.sections import (
    CalibrationSection,
    EvaluationSection,
    LearningSection,
    LearningText,
    ModelSection,
    OnnxSection,
    Override,
    PublishSection,
    Scheme,
    SparsitySection,
    TextSection,
    VerifySection,
)
from nm_export.recipe.settings import Setting

__all__ = [
    "CalibrationSection",
    "EvaluationSection",
    "LearningSection",
    "LearningText",
    "ModelSection",
    "OnnxSection",
    "Override",
    "PublishSection",
    "Recipe",
    "Scheme",
    "Setting",
    "SparsitySection",
    "TextSection",
    "VerifySection",
    "load_recipe",
    "parse_recipe",
    "recipe_from_settings",
    "recipe_schema",
]
