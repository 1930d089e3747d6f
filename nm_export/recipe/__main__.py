"""Print the JSON schema of the recipe: `python -m nm_export.recipe > docs/recipe.schema.json`."""

import json

from nm_export.recipe.schema import recipe_schema

print(json.dumps(recipe_schema(), indent=2))
