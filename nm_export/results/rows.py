"""The rows of the table: the recipes that ship, and a grid of patterns and methods made from them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nm_export.errors import UserError
from nm_export.recipe import Recipe, load_recipe

GRID = {
    ("weight_norm", "dpts_median", "amber_var"): ("2:4", "4:8", "16:32", "50%"),
    ("magnitude", "weight_norm", "weight_pruning"): ("12:16", "10:16", "6:16"),
    ("magnitude",): ("75%",),
}
"""Methods of the paper's recipes at 8:16, and further patterns that each is measured at."""

_PATTERN_SUFFIX = re.compile(r"_(?:\d+of\d+|[\d.]+pct)$")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: unique, for the cache and --only; a recipe's file name without its ending.
        method: the name without the pattern: rows of one method make one line in the picture.
        title: for people: the recipe's first comment up to the first `: `.
        recipe: what is measured.
        shipped: whether it is a recipe for users rather than one of the paper's methods.
        note: how it differs from its recipe file; empty where it does not.
    """

    name: str
    method: str
    title: str
    recipe: Recipe
    shipped: bool = False
    note: str = ""

    @property
    def pattern(self) -> str:
        """The pattern of the sparsity section."""
        return self.recipe.sparsity.pattern

    @property
    def learned(self) -> bool:
        """Whether something is trained, which takes long."""
        return self.recipe.learning.mode != "none"

    @property
    def with_tasks(self) -> bool:
        """Whether the tasks are asked: at 8:16 only."""
        return self.pattern == "8:16"


def read_rows(recipes: Path, *, calibration: str | None = None, learning: tuple[int, int] | None = None) -> list[Row]:
    """Read the rows in the order in which they are measured and shown.

    What is learned comes last, as it takes long; before that 8:16 first, the paper's methods first, and of these
    magnitude, which the others are compared with.

    Args:
        recipes: folder with `paper/*.yaml`, and `smollm2_*.yaml` for users.
        calibration: text, read whole, that replaces the calibration dataset of every recipe.
        learning: sequences and tokens in each that replace those of the paper's learned recipes.

    Raises:
        UserError: there are no recipes, or one is wrong.
    """
    paper = [_row(path, calibration, learning) for path in sorted((recipes / "paper").glob("*.yaml"))]
    if not paper:
        raise UserError(f"{recipes} has no recipes paper/*.yaml; run this in the project's folder, or name --recipes")
    shipped = [_row(path, calibration, None, shipped=True) for path in sorted(recipes.glob("smollm2_*.yaml"))]
    # one command must do without the Hub: what calibrates on its text takes part when --calibration names another
    rows = [*paper, *(row for row in shipped if row.recipe.calibration.dataset.startswith("builtin:") or calibration)]
    rows += _grid(paper)
    return sorted(rows, key=_place)


def _place(row: Row) -> tuple[bool, ...]:
    return row.learned, row.pattern != "8:16", row.shipped, row.method != "magnitude"


def _grid(paper: list[Row]) -> Iterator[Row]:
    starts = {row.method: row for row in paper if row.pattern == "8:16"}
    known = {row.name for row in paper}
    for methods, patterns in GRID.items():
        for method in methods:
            if method not in starts:
                continue
            start = starts[method]
            for pattern in patterns:
                name = f"{method}_{pattern.replace(':', 'of').replace('%', 'pct')}"
                if name not in known:
                    sparsity = start.recipe.sparsity.model_copy(update={"pattern": pattern})
                    yield Row(name, method, start.title, start.recipe.model_copy(update={"sparsity": sparsity}))


def _row(path: Path, calibration: str | None, learning: tuple[int, int] | None, *, shipped: bool = False) -> Row:
    recipe, note = load_recipe(path), ""
    if calibration is not None:
        text = recipe.calibration.model_copy(
            update={"dataset": calibration, "split": "all", "name": None, "revision": None}
        )
        recipe = recipe.model_copy(update={"calibration": text})
    if learning is not None and recipe.learning.mode != "none":
        full, (samples, length) = recipe.learning, learning
        note = f"{samples} x {length} tokens instead of {full.num_samples} x {full.sequence_length}"
        shortened = full.model_copy(update={"num_samples": samples, "sequence_length": length})
        recipe = recipe.model_copy(update={"learning": shortened})
    title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").partition(": ")[0].strip()
    if shipped:
        title = f"[{path.name}](../recipes/{path.name})"
    return Row(path.stem, _PATTERN_SUFFIX.sub("", path.stem), title, recipe, shipped, note)
