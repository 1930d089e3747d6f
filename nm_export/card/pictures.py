"""Pictures of a card as SVG: where pruning costs, quality and speed beside the dense model."""

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nm_export.card.grid import Cell, Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.4
"""Inches: narrow enough that the writing can be read on a phone."""


@dataclass(frozen=True)
class Theme:
    """Colours."""

    paper: str
    ink: str
    faint: str
    dense: str
    sparse: str


LIGHT = Theme(paper="#ffffff", ink="#1f2328", faint="#d8dee4", dense="#8c959f", sparse="#0969da")
DARK = Theme(paper="#0d1117", ink="#e6edf3", faint="#343b44", dense="#6e7681", sparse="#4493f8")


@dataclass(frozen=True)
class Pair:
    """A number of the dense model and the same of the sparse one."""

    label: str
    dense: float
    sparse: float
    note: str
    """How they compare, for the end of the sparse bar."""


@dataclass(frozen=True)
class Panel:
    """Pairs of one unit."""

    title: str
    pairs: Sequence[Pair]
    digits: int


def draw_layers(grid: Grid, theme: Theme = LIGHT) -> str:
    """Return two heat maps: the energy that each linear's pruned input keeps, and the error of its output.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with _style(theme):
        figure = _figure(WIDTH, 2 * (0.95 + 0.27 * len(grid.kinds)) + 0.35)
        upper, lower = figure.subplots(2, 1)
        energies = [cell.retained_energy for cell in grid.cells.values() if cell.retained_energy is not None]
        errors = [cell.output_error for cell in grid.cells.values() if cell.output_error is not None]
        _heat_map(upper, grid, "Energy of its input that a layer keeps, %", theme, energies, 100.0, "viridis")
        _heat_map(lower, grid, "Error of its output, % of the output", theme, errors, 0.0, "plasma_r")
        lower.set_xlabel("layer")
        states = {cell.state for cell in grid.cells.values()}
        words = {
            "dense": "grey: dense",
            "weights": "x: pruned weights, not measured",
            "prefill": "P: dense in decoding",
            "decode": "D: dense in prompts",
        }
        legend = "     ".join(text for state, text in words.items() if state in states)
        if legend:
            figure.supxlabel(legend, fontsize=8, color=theme.ink)
        return _svg(figure)


def draw_pairs(panels: Sequence[Panel], theme: Theme = LIGHT) -> str:
    """Return bars, a panel for each unit: dense above sparse.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with _style(theme):
        rows = [len(panel.pairs) for panel in panels]
        figure = _figure(WIDTH, 0.45 + sum(0.35 + 0.62 * count for count in rows))
        axes = figure.subplots(len(panels), 1, height_ratios=[count + 0.3 for count in rows], squeeze=False)
        for place, panel in zip(axes[:, 0], panels, strict=True):
            _bars(place, panel, theme)
        from matplotlib.patches import Patch

        handles = [Patch(color=theme.dense, label="dense"), Patch(color=theme.sparse, label="sparse")]
        figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
        return _svg(figure)


def _heat_map(
    axes: "Axes", grid: Grid, title: str, theme: Theme, values: Sequence[float], best: float, colours: str
) -> None:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    image = np.full((len(grid.kinds), len(grid.layers)), np.nan)
    for row, kind in enumerate(grid.kinds):
        for column, layer in enumerate(grid.layers):
            cell = grid.cells.get((kind, layer))
            value = None if cell is None else (cell.retained_energy if best else cell.output_error)
            if value is not None:
                image[row, column] = 100 * value
            elif cell is None:
                axes.add_patch(Rectangle((column, row), 1, 1, facecolor=theme.paper, linewidth=0))
            _mark(axes, cell, column, row, theme)
    low, high = (100 * min(values), best) if best else (best, 100 * max(values))
    mesh = axes.pcolormesh(
        np.arange(len(grid.layers) + 1),
        np.arange(len(grid.kinds) + 1),
        np.ma.masked_invalid(image),
        cmap=colormaps[colours].resampled(32),
        vmin=low,
        vmax=high if high > low else low + 1,
        edgecolors=theme.paper,
        linewidth=0.6,
    )
    axes.set_facecolor(theme.faint)
    axes.set_xlim(0, len(grid.layers))
    axes.set_ylim(len(grid.kinds), 0)
    axes.set_yticks(np.arange(len(grid.kinds)) + 0.5, grid.kinds)
    step = -(-len(grid.layers) // 16)
    axes.set_xticks(np.arange(0, len(grid.layers), step) + 0.5, [str(layer) for layer in grid.layers[::step]])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, loc="left")
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.015, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def _mark(axes: "Axes", cell: Cell | None, column: int, row: int, theme: Theme) -> None:
    letter = {"weights": "x", "prefill": "P", "decode": "D"}.get(cell.state) if cell else None
    if letter:
        style: dict[str, Any] = {"fontsize": 6, "ha": "center", "va": "center", "zorder": 3}
        if letter == "x":
            axes.text(column + 0.5, row + 0.5, letter, color=theme.ink, **style)
        else:  # readable on any colour of the map
            box = {"boxstyle": "circle,pad=0.15", "facecolor": theme.paper, "edgecolor": "none"}
            axes.text(column + 0.5, row + 0.5, letter, color=theme.ink, bbox=box, **style)


def _bars(axes: "Axes", panel: Panel, theme: Theme) -> None:
    longest = max(max(pair.dense, pair.sparse) for pair in panel.pairs) or 1.0
    for row, pair in enumerate(panel.pairs):
        axes.text(0, row, pair.label, fontsize=8.5, va="bottom")
        for offset, value, colour, note in (
            (0.17, pair.dense, theme.dense, ""),
            (0.47, pair.sparse, theme.sparse, f"   {pair.note}"),
        ):
            axes.barh(row + offset, value, height=0.27, color=colour)
            axes.text(
                value + 0.012 * longest, row + offset, f"{value:,.{panel.digits}f}{note}", fontsize=8.5, va="center"
            )
    axes.set_xlim(0, 1.32 * longest)
    axes.set_ylim(len(panel.pairs) - 0.3, -0.32)
    axes.set_axis_off()
    axes.set_title(panel.title, loc="left")


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


@contextmanager
def _style(theme: Theme) -> Iterator[None]:
    # without a home directory matplotlib complains about where its cache goes, and works
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib import rc_context

    style: Any = {
        "svg.hashsalt": "nm_export",  # with no date: the same numbers give the same file
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), theme.ink),
    }
    with rc_context(style):
        yield


def _svg(figure: "Figure") -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
