"""Tables of a card: what was done, what was measured, what was verified. Markdown."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nm_export.card.grid import Grid

_FORMS = {
    "reloaded": "this repository, reloaded by its own code",
    "onnx_kernel": "ONNX Runtime, compiled operators",
    "onnx_function": "ONNX Runtime, standard operators",
}


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """A Markdown table; columns from `numbers_from` on are aligned to the right."""
    alignment = ["---"] * numbers_from + ["---:"] * (len(header) - numbers_from)
    lines = [alignment, *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, *lines])


def schemes_table(schemes: Sequence[dict[str, Any]]) -> str:
    """What is pruned, and how: a row for each scheme."""
    header = ["modules", "pattern", "score", "shift", "variance correction", "outputs", "phase"]
    return table(header, [_scheme(scheme) for scheme in schemes], numbers_from=len(header))


def counted_kinds(names: Iterable[str]) -> str:
    """`30 down_proj, 30 k_proj`: how many of the linears are of which kind."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(n.rsplit(".", 1)[-1] for n in names).items())


def layers_table(grid: Grid) -> str:
    """Kinds of linears with means over the layers and the worst layer of each."""
    rows = []
    for kind in grid.kinds:
        cells = [(layer, cell) for layer, cell in grid.row(kind) if cell.retained_energy is not None]
        if not cells:
            continue
        low, low_layer = min((cell.retained_energy or 0.0, layer) for layer, cell in cells)
        errors = [(cell.output_error, layer) for layer, cell in cells if cell.output_error is not None]
        high, high_layer = max(errors, default=(0.0, 0))
        rows.append(
            [
                kind,
                str(len(cells)),
                f"{_mean(cell.retained_energy for _, cell in cells):.1%}",
                f"{low:.1%} (layer {low_layer})",
                f"{_mean(error for error, _ in errors):.1%}" if errors else "",
                f"{high:.1%} (layer {high_layer})" if errors else "",
            ]
        )
    return table(["linears", "layers", "energy kept, mean", "least", "output error, mean", "largest"], rows)


def verification_table(report: dict[str, Any]) -> str:
    """What every form was found to compute, beside what rounding alone does."""
    rows = []
    for form, check in report["modules"].items():
        end = report["end_to_end"].get(form)
        equal = form == "reloaded" and report["reloaded_logits_equal"]
        rows.append(
            [
                _FORMS.get(form, form.replace("_", " ")),
                f"equal in {check['modules']} of {check['modules']} layers" if check["kept_channels_equal"] else "no",
                f"{check['largest_error']:.1e}" if check["largest_error"] else "0",
                f"{end['kl']:.4f}" if end else ("0 (bit-equal)" if equal else ""),
                f"{end['top1_agreement']:.1%}" if end else ("100 %" if equal else ""),
            ]
        )
    floor = report.get("floor")
    if floor:
        rows.append(["allowance: the model against itself, rounded differently", "", "", f"{floor['kl']:.4f}"])
        rows[-1].append(f"{floor['top1_agreement']:.1%}")
    return table(
        ["form", "kept channels", "largest output difference", "KL, nats", "equal top-1"], rows, numbers_from=2
    )


def text_name(text: str) -> str:
    """Name of a text: of a file its last part, which tells nothing about the author's folders."""
    return Path(text).name if "/" in text and (Path(text).is_absolute() or Path(text).exists()) else text


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def _scheme(scheme: dict[str, Any]) -> list[str]:
    modules = counted_kinds(scheme["modules"])
    if scheme["prune"] == "weights":
        return [modules, f"{scheme['pattern']} of the weights", "", "", "", "", ""]
    score = scheme["score"]
    if score == "weight_norm" and scheme["score_exponent"] != 1:
        score = f"{score} ^ {scheme['score_exponent']}"
    outputs = [
        word
        for word, used in (
            ("scale", scheme["output_scale"]),
            (f"{scheme['output_bias']} bias", scheme["output_bias"] != "none"),
            (f"residual of rank {scheme['residual_rank']}", scheme["residual_rank"]),
        )
        if used
    ]
    correction = "yes" if scheme["variance_correction"] else "no"
    return [
        modules,
        scheme["pattern"] if scheme["grouping"] == "neighbours" else f"{scheme['pattern']}, {scheme['grouping']}",
        score,
        scheme["shift"],
        correction,
        ", ".join(outputs) or "as they are",
        scheme["phase"],
    ]
