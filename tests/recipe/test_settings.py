"""A dataset that is set takes the place of the recipe's, with all that was said about that one."""

from pathlib import Path

import pytest

from nm_export.errors import UserError
from nm_export.recipe import Recipe, Setting, load_recipe, recipe_from_settings

RECIPES = Path(__file__).parents[2] / "recipes"
HUB = """
model: {source: some/model}
calibration: {dataset: org/corpus, name: small, split: 'train[:10%]', text_column: body, revision: v2, num_samples: 5}
evaluation: {split: test, seed: 3}
"""


def load(folder: Path, text: str, *settings: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, settings)


def of_dataset(section) -> tuple:
    return section.dataset, section.name, section.split, section.text_column, section.revision


def test_a_dataset_that_is_set_brings_nothing_of_the_replaced_one(tmp_path: Path) -> None:
    recipe = load(tmp_path, HUB, "calibration.dataset=my_text.txt")
    assert of_dataset(recipe.calibration) == ("my_text.txt", None, "train", "text", None)
    assert of_dataset(recipe.held_out) == ("my_text.txt", None, "validation", "text", None)
    assert (recipe.calibration.num_samples, recipe.held_out.seed) == (5, 3)


def test_what_is_set_with_it_counts_in_any_order(tmp_path: Path) -> None:
    settings = ("split=dev", "dataset=org/other", "name=big")
    recipe = load(tmp_path, HUB, "evaluation.split=held", *(f"calibration.{setting}" for setting in settings))
    assert of_dataset(recipe.calibration) == ("org/other", "big", "dev", "text", None)
    assert of_dataset(recipe.held_out) == ("org/other", "big", "held", "text", None)


@pytest.mark.parametrize("settings", [["calibration.dataset=org/corpus"], ["calibration.name=large"]])
def test_the_same_dataset_keeps_what_is_said_about_it(tmp_path: Path, settings: list[str]) -> None:
    recipe = load(tmp_path, HUB, *settings)
    assert (recipe.calibration.text_column, recipe.calibration.revision, recipe.held_out.split) == (
        "body",
        "v2",
        "test",
    )


def test_an_evaluation_with_its_own_dataset_keeps_it(tmp_path: Path) -> None:
    own = HUB.replace("{split: test", "{dataset: org/held, name: small, split: test")
    recipe = load(tmp_path, own, "calibration.dataset=my_text.txt")
    assert of_dataset(recipe.held_out)[:3] == ("org/held", "small", "test")
    recipe = load(tmp_path, own, "evaluation.dataset=held.txt")
    assert of_dataset(recipe.held_out) == ("held.txt", None, "validation", "text", None)
    assert recipe.calibration.name == "small"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_takes_a_local_text(path: Path) -> None:
    recipe = load_recipe(path, ["calibration.dataset=my_text.txt"])
    for section in (recipe.calibration, recipe.held_out):
        assert of_dataset(section)[:2] == ("my_text.txt", None)
        assert section.split in ("train", "validation")


def test_a_recipe_of_settings_alone() -> None:
    recipe = recipe_from_settings(["model.source=some/model", Setting("sparsity.pattern", "4:8", "--pattern 4:8")])
    assert recipe == Recipe(model={"source": "some/model"}, sparsity={"pattern": "4:8"})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sparsity.overrides.0.dense=true", "the recipe has no sparsity.overrides, and so no entry 0"),
        ("sparsity.overrides.dense=true", "--set sparsity.overrides.dense=true: sparsity.overrides is a mapping"),
    ],
)
def test_a_setting_is_to_blame_for_what_it_had_to_make(tmp_path: Path, setting: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {source: a/b}\n")
    with pytest.raises(UserError) as error:
        load_recipe(path, [setting])
    assert str(error.value).startswith(f"--set {setting}: ")
    assert message in str(error.value)
