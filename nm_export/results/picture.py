"""The picture beside the table: quality against what is saved, and against the freedom of choice."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nm_export.errors import UserError
from nm_export.results.measured import Measured
from nm_export.results.page import by_method
from nm_export.results.store import write_text

_PATTERNS = ("2:4", "4:8", "8:16", "16:32", "50%")


def draw(path: Path, results: Sequence[Measured], text: str) -> None:
    """Draw the perplexity ratios on one text as SVG, whole or not at all.

    Left: against the share of the linears' multiplications saved; a line for each method that has been measured at
    several shares, a point for each recipe of our own and for each other learned method. Right: against the pattern,
    all of which save half.

    Args:
        path: file to write.
        results: rows; those without the text are left out.
        text: title of the text.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            'the picture needs matplotlib, which is not installed: pip install "nm_export[docs]"'
        ) from error
    found = [r for r in results if r.cost is not None and r.texts.get(text, {}).get("ratio", {}).get("value")]
    # a fixed salt and no date: the same numbers give the same file
    with rc_context(
        {"svg.hashsalt": "nm_export", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(11, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _against_savings(left, found, text)
        _against_pattern(right, found, text)
        for axes in (left, right):
            _log_ratio(axes)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    write_text(path, buffer.getvalue())


def _against_savings(axes: Any, results: Sequence[Measured], text: str) -> None:
    unstructured = by_method(results, lambda r: r.row.pattern.endswith("%") and r.row.method == "magnitude")
    grouped = by_method(results, lambda r: r.row.pattern.endswith(":16"))
    lines = [(line[0].row.title, line) for line in grouped]
    lines += [("Magnitude, unstructured", line) for line in unstructured]
    for title, line in lines:
        points = sorted((_saved(r), _ratio(r, text)) for r in line)
        if len({saved for saved, _ in points}) > 1:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, linewidth=1.4, label=title)
    own = [r for r in results if r.row.shipped or r.row.learned]
    for result in own:
        point = (_saved(result), _ratio(result, text))
        axes.plot(
            *point, marker="*" if result.row.learned else "D", markersize=9 if result.row.learned else 5, color="k"
        )
        axes.annotate(result.row.name, point, xytext=(6, -3), textcoords="offset points", fontsize=7.5)
    axes.set_xlabel("multiplications of the decoder's linears saved, %")
    axes.set_ylabel(f"perplexity over the dense model's, {text}")
    axes.set_title("Groups of 16 (★ learned, ◆ other recipes)", fontsize=9)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8, loc="upper left")


def _against_pattern(axes: Any, results: Sequence[Measured], text: str) -> None:
    for line in by_method(results, lambda r: r.row.pattern in _PATTERNS):
        ratios = {r.row.pattern: _ratio(r, text) for r in line}
        if len(ratios) > 1:
            known = [(place, ratios[pattern]) for place, pattern in enumerate(_PATTERNS) if pattern in ratios]
            axes.plot(*zip(*known, strict=True), marker="o", markersize=3.5, linewidth=1.4, label=line[0].row.title)
    axes.set_xticks(range(len(_PATTERNS)), _PATTERNS)
    axes.set_xlabel("pattern")
    axes.set_title("Half of all multiplications saved", fontsize=9)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def _log_ratio(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)


def _saved(result: Measured) -> float:
    """Percent saved, what is added taken off."""
    assert result.cost is not None
    return float(100 * (result.cost["saved_share"] - result.cost["added_share"]))


def _ratio(result: Measured, text: str) -> float:
    return float(result.texts[text]["ratio"]["value"])
