"""The picture: attained speed against arithmetic intensity, below the roof that bandwidth and multiplication make."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nm_export.benchmark.machine import Machine
from nm_export.benchmark.products import Product
from nm_export.errors import UserError
from nm_export.onnx.extras import require
from nm_export.whole_file import write_whole

_MARKERS = "osD^v<>P*X"


def draw_roofline(path: Path, products: Sequence[Product], machine: Machine) -> None:
    """Draw as SVG, whole or not at all: one colour a format of weights, one marker a number of tokens.

    Filled points are sparse products, empty ones the dense ones of the same weights. Speed counts the operations that
    are done: of a sparse product, those of kept channels only. Its selection is in its time.

    Args:
        path: file to write.
        products: at least one.
        machine: whose roof to draw.

    Raises:
        UserError: matplotlib is not installed.
    """
    require("matplotlib", "docs")
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # a fixed salt and no date: the same numbers give the same file
    with rc_context(
        {"svg.hashsalt": "nm_export", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        _roof(axes, products, machine)
        _points(axes, products)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("operations for each byte that must be read or written")
        axes.set_ylabel("GFLOP/s attained")
        axes.legend(frameon=False, fontsize=7.5, loc="lower right")
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    write_whole(path, buffer.getvalue())


def check_picture_target(path: Path) -> None:
    """Raise a UserError, before anything is measured, where no picture can be written."""
    require("matplotlib", "docs")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--picture: {path} is not a file in an existing folder.")


def _roof(axes: Any, products: Sequence[Product], machine: Machine) -> None:
    intensities = [p.dense_flops / p.dense_bytes for p in products] + [
        p.sparse_flops / p.sparse_bytes for p in products
    ]
    ridge = machine.peak / machine.bandwidth
    left, right = min([*intensities, ridge]) / 2, max([*intensities, ridge]) * 2
    speeds = [intensity * machine.bandwidth / 1e9 for intensity in (left, ridge)]
    label = f"{machine.bandwidth / 1e9:.1f} GB/s, {machine.peak / 1e9:.0f} GFLOP/s (float32)"
    axes.plot([left, ridge, right], [*speeds, machine.peak / 1e9], color="black", linewidth=1.2, label=label)


def _points(axes: Any, products: Sequence[Product]) -> None:
    formats = list(dict.fromkeys(p.weights for p in products))
    counts = sorted({p.tokens for p in products})
    for index, form in enumerate(formats):
        axes.plot([], [], marker="s", linestyle="none", color=f"C{index}", label=form)
    for count, marker in zip(counts, _MARKERS, strict=False):
        tokens = f"{count} token{'' if count == 1 else 's'}"
        axes.plot([], [], marker=marker, linestyle="none", color="gray", label=tokens)
    axes.plot([], [], marker="o", linestyle="none", color="gray", fillstyle="none", label="empty: dense")
    for p in products:
        style: dict[str, Any] = {
            "marker": _MARKERS[counts.index(p.tokens) % len(_MARKERS)],
            "color": f"C{formats.index(p.weights)}",
            "linestyle": "none",
            "markersize": 5,
        }
        axes.plot(p.sparse_flops / p.sparse_bytes, p.sparse_flops / p.sparse_seconds / 1e9, **style)
        axes.plot(p.dense_flops / p.dense_bytes, p.dense_flops / p.dense_seconds / 1e9, **style, fillstyle="none")
