"""Which rows there are, made from the recipes that ship."""

from pathlib import Path

import pytest

from nm_export.errors import UserError
from nm_export.results.rows import GRID, read_rows

RECIPES = Path(__file__).parents[2] / "recipes"


def test_every_recipe_of_the_paper_and_of_the_sample_model_is_a_row() -> None:
    names = [row.name for row in read_rows(RECIPES)]
    assert len(set(names)) == len(names)
    shipped = {path.stem for path in [*RECIPES.glob("paper/*.yaml"), *RECIPES.glob("smollm2_*.yaml")]}
    assert {row.name for row in read_rows(RECIPES, calibration="text.txt")} >= shipped
    # without the Hub, those that calibrate on its text are left out
    assert shipped - set(names) == {"smollm2_8of16_all", "smollm2_half"}


def test_the_grid_adds_patterns_and_repeats_nothing() -> None:
    rows = {row.name: row for row in read_rows(RECIPES)}
    assert rows["weight_norm_2of4"].pattern == "2:4"
    assert rows["weight_norm_2of4"].recipe.sparsity.score == "weight_norm"
    assert rows["amber_var_50pct"].recipe.sparsity.variance_correction
    assert rows["weight_pruning_6of16"].recipe.sparsity.prune == "weights"
    for methods, patterns in GRID.items():
        for method in methods:
            assert {row.pattern for row in rows.values() if row.method == method} >= {*patterns, "8:16"}
    seen = [row.recipe.model_copy(update={"output_dir": None}) for row in rows.values()]
    assert all(recipe not in seen[:number] for number, recipe in enumerate(seen))


def test_long_rows_come_last_and_8_of_16_first() -> None:
    rows = read_rows(RECIPES)
    assert [row.learned for row in rows] == sorted(row.learned for row in rows)
    assert rows[0].name == "magnitude_8of16"
    quick = [row.pattern == "8:16" for row in rows if not row.learned]
    assert quick == sorted(quick, reverse=True)


def test_tasks_are_asked_at_8_of_16_only() -> None:
    assert {row.pattern for row in read_rows(RECIPES) if row.with_tasks} == {"8:16"}


def test_learning_is_shortened_for_the_paper_only_and_noted() -> None:
    rows = {row.name: row for row in read_rows(RECIPES, calibration="text.txt", learning=(32, 256))}
    paper, own = rows["lpts_8of16"], rows["smollm2_8of16_all"]
    assert (paper.recipe.learning.num_samples, paper.recipe.learning.sequence_length) == (32, 256)
    assert paper.note.startswith("32 x 256 tokens instead of ")
    assert own.note == ""
    every = read_rows(RECIPES, calibration="text.txt")
    assert own.recipe == next(row for row in every if row.name == own.name).recipe


def test_the_calibration_text_can_be_another() -> None:
    for row in read_rows(RECIPES, calibration="text.txt"):
        assert (row.recipe.calibration.dataset, row.recipe.calibration.split) == ("text.txt", "all")


def test_titles_are_the_comments() -> None:
    rows = {row.name: row for row in read_rows(RECIPES)}
    assert rows["dpts_median_8of16"].title == "D-PTS, median"
    assert rows["weight_norm_2of4"].title == rows["weight_norm_8of16"].title
    assert rows["smollm2_8of16"].title == "[smollm2_8of16.yaml](../recipes/smollm2_8of16.yaml)"


def test_a_folder_without_recipes_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--recipes"):
        read_rows(tmp_path)
