"""Scores of single linears as a grid: layers across, kinds of linears down."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Cell:
    """Linears of one kind in one layer; several where the kind is one of experts, whose numbers are averaged.

    Attributes:
        retained_energy: mean, 0 to 1; None where nothing was measured.
        output_error: mean; None likewise.
        state: `both`, `prefill`, `decode` (what is pruned), `weights` or `dense`.
    """

    retained_energy: float | None
    output_error: float | None
    state: str


@dataclass(frozen=True)
class Grid:
    """Cells by kind and layer, in the model's order."""

    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    cells: dict[tuple[str, int], Cell]

    @property
    def is_measured(self) -> bool:
        """Whether any cell holds numbers."""
        return any(cell.retained_energy is not None for cell in self.cells.values())

    def row(self, kind: str) -> list[tuple[int, Cell]]:
        """The cells of one kind, with their layers."""
        return [(layer, self.cells[kind, layer]) for layer in self.layers if (kind, layer) in self.cells]


def make_grid(scores: dict[str, Any]) -> Grid:
    """Arrange what `LayerScores.to_dict` gave."""
    places = {name: _place(name) for name in scores["modules"]}
    kinds = _short(kind for kind, _ in places.values())
    found: dict[tuple[str, int], list[Cell]] = {}
    for name, score in scores["modules"].items():
        kind, layer = places[name]
        cell = Cell(score["retained_energy"], score["output_error"], score["state"])
        found.setdefault((kinds[kind], layer), []).append(cell)
    return Grid(
        kinds=tuple(kinds.values()),
        layers=tuple(sorted({layer for _, layer in found})),
        cells={place: _joined(cells) for place, cells in found.items()},
    )


def _place(name: str) -> tuple[str, int]:
    """Kind and layer: `model.layers.3.mlp.experts.7.w1` is `mlp.experts.*.w1` in layer 3."""
    match = _LAYER.search(name)
    if match is None:
        return name, 0
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name[match.end() :]), int(match[1])


def _short(kinds: Iterable[str]) -> dict[str, str]:
    """Last parts of the kinds' names, unless two have the same."""
    names = list(dict.fromkeys(kinds))
    last = [name.rsplit(".", 1)[-1] for name in names]
    return {name: short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)}


def _joined(cells: list[Cell]) -> Cell:
    pruned = [cell for cell in cells if cell.state not in ("dense", "weights")]
    return Cell(
        _mean(cell.retained_energy for cell in pruned),
        _mean(cell.output_error for cell in pruned),
        pruned[0].state if pruned else cells[0].state,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
