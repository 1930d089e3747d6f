"""The picture beside the table: quality against what is saved, and against the freedom of choice."""

import io
import itertools
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nm_export.errors import UserError
from nm_export.results.measured import Measured
from nm_export.results.page import by_method
from nm_export.results.store import write_text

_PATTERNS = ("2:4", "4:8", "8:16", "16:32", "50%")
_LINE: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.4}


def require_matplotlib() -> None:
    """Raise a UserError that names the extra when matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise UserError('the picture needs matplotlib, which is not installed: pip install "nm_export[docs]"')


def draw(path: Path, results: Sequence[Measured], text: str) -> None:
    """Draw the perplexity ratios on one text as SVG, whole or not at all.

    Left: against the share of the linears' multiplications saved; a line for each method that has been measured at
    several shares, a point for each recipe of our own and for each learned method. Right: against the pattern,
    all of which save half.

    Args:
        path: file to write.
        results: rows; those without the text are left out.
        text: title of the text.

    Raises:
        UserError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    found = [r for r in results if r.cost is not None and r.texts.get(text, {}).get("ratio", {}).get("value")]
    # a fixed salt and no date: the same numbers give the same file
    with rc_context(
        {"svg.hashsalt": "nm_export", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(11, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        # one colour a method, in both halves
        colours = {method: f"C{n}" for n, method in enumerate(dict.fromkeys(r.row.method for r in _lines(found)))}
        _against_savings(left, found, text, colours)
        _against_pattern(right, found, text, colours)
        for axes in (left, right):
            _log_ratio(axes)
            if axes.get_legend_handles_labels()[1]:
                axes.legend(frameon=False, fontsize=7.5)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    write_text(path, buffer.getvalue())


def _against_savings(axes: Any, results: Sequence[Measured], text: str, colours: Mapping[str, str]) -> None:
    for line in by_method(results, lambda r: r.row.pattern.endswith(":16")):
        _line(axes, line, text, line[0].row.title, colours.get(line[0].row.method))
    for line in by_method(results, lambda r: r.row.pattern.endswith("%") and r.row.method == "magnitude"):
        _line(axes, line, text, "Magnitude, unstructured", "black")
    points = [result for result in results if result.row.shipped or result.row.learned]
    for result, marker in zip(points, itertools.cycle("*PXDs^vd<>"), strict=False):
        title = f"recipe {result.row.name}" if result.row.shipped else result.row.title
        style = {"color": "black" if result.row.shipped else "gray", "linestyle": "none", "markersize": 7}
        axes.plot(_saved(result), _ratio(result, text), marker=marker, label=title, **style)
    axes.set_xlabel("multiplications of the decoder's linears saved, %")
    axes.set_ylabel(f"perplexity over the dense model's, {text}")
    axes.set_title("Groups of 16 channels, and recipes of our own", fontsize=9)


def _line(axes: Any, line: Sequence[Measured], text: str, title: str, colour: str | None) -> None:
    """Draw a method that was measured at several shares, from the dense model on."""
    points = sorted({(_saved(result), _ratio(result, text)) for result in line})
    if len(points) > 1:
        axes.plot(*zip((0.0, 1.0), *points, strict=True), **_LINE, label=title, color=colour)


def _against_pattern(axes: Any, results: Sequence[Measured], text: str, colours: Mapping[str, str]) -> None:
    for line in by_method(results, lambda r: r.row.pattern in _PATTERNS):
        ratios = {r.row.pattern: _ratio(r, text) for r in line}
        if len(ratios) > 1:
            known = [(place, ratios[pattern]) for place, pattern in enumerate(_PATTERNS) if pattern in ratios]
            row = line[0].row
            axes.plot(*zip(*known, strict=True), **_LINE, label=row.title, color=colours.get(row.method))
    axes.set_xticks(range(len(_PATTERNS)), _PATTERNS)
    axes.set_xlabel("pattern")
    axes.set_title("Half of all multiplications saved", fontsize=9)


def _lines(results: Sequence[Measured]) -> list[Measured]:
    """A row of each method that may make a line."""
    return [line[0] for line in by_method(results, lambda _: True) if len(line) > 1]


def _log_ratio(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)


def _saved(result: Measured) -> float:
    """Percent saved, what is added taken off."""
    assert result.cost is not None
    return float(100 * (result.cost["saved_share"] - result.cost["added_share"]))


def _ratio(result: Measured, text: str) -> float:
    return float(result.texts[text]["ratio"]["value"])
