"""The YAML of the documentation is YAML, and where it is a part of a recipe, a valid one."""

import pytest
import yaml

from nm_export.recipe import Recipe, parse_recipe
from tests.docs.blocks import blocks

BLOCKS = list(blocks("yaml"))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_yaml_is_what_it_says(block):
    content = yaml.load(block.code, Loader=yaml.BaseLoader)
    if content and set(content) <= set(Recipe.model_fields):
        model = "" if "model" in content else "model: {source: some/model}\n"
        parse_recipe(model + block.code)
