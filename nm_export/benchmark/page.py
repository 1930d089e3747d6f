"""docs/benchmarks.md: results of `nm-export bench`, beside what was wanted."""

import json
from collections.abc import Sequence
from pathlib import Path

from nm_export.benchmark.model import ModelBenchmark
from nm_export.benchmark.operators import OperatorBenchmark
from nm_export.benchmark.report import Report, table
from nm_export.benchmark.roofline import draw_roofline
from nm_export.benchmark.targets import TARGETS, Measured, Target
from nm_export.errors import UserError
from nm_export.whole_file import write_whole

_INTRODUCTION = """Speed of the compiled operators beside ONNX Runtime's own, and of models beside their dense twins.
This page is written by `nm-export bench page` from the results of the commands that stand under each table
(`make bench` runs them all): do not edit it.

Rivals take turns in one process; a ratio says how many times faster the sparse one is. Weights of
operators cycle through twice the last-level cache, so that each comes from memory as in a model that is
larger than the cache. Sessions that wait do not spin. The dense rival is ONNX Runtime's MatMul of
float32 weights, for float16 and bfloat16 weights too; for 8 and 4 bits it is MatMulNBits of the same
bits and block size at accuracy level 4, which rounds activations to 8 bits."""
_TARGETS = """The worst and the best number of all that a target is about. The commands are numbered below the table."""


def read_report(path: Path) -> Report:
    """Read a file that `--json` wrote.

    Raises:
        UserError: it is not one.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        readers = {ModelBenchmark.kind: ModelBenchmark.from_dict, OperatorBenchmark.kind: OperatorBenchmark.from_dict}
        return readers[values["kind"]](values)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a result that this nm-export bench wrote with --json; measure again."
        ) from error


def write_page(path: Path, reports: Sequence[Report], note: str = "") -> None:
    """Write the page and, if operators were measured, its picture beside it; each whole or not at all.

    The picture shows the first operator result; its name is the page's, ending in `.svg`.

    Args:
        path: of the page.
        reports: in the order of the page.
        note: what a reader should know about the runs.

    Raises:
        UserError: matplotlib is not installed.
    """
    operators = [report for report in reports if isinstance(report, OperatorBenchmark) and report.products]
    picture = None
    if operators:
        picture = path.with_suffix(".svg")
        draw_roofline(picture, operators[0].products, operators[0].machine)
    write_whole(path, to_markdown(reports, None if picture is None else picture.name, note))


def to_markdown(reports: Sequence[Report], picture: str | None = None, note: str = "") -> str:
    """Return the page.

    Args:
        reports: in the order of the page.
        picture: relative path of the picture.
        note: what a reader should know about the runs.
    """
    parts = ["# Benchmarks", _INTRODUCTION, *([note] if note else [])]
    commands = list(dict.fromkeys(command_of(report) for report in reports))
    parts += ["## Targets", _TARGETS, _target_table(reports, commands)]
    parts.append("\n".join(f"{number}. `{command}`" for number, command in enumerate(commands, 1)))
    reasons = [f"- {t.text}: {t.reason}" for t in TARGETS if t.reason and not _all_met(t, t.measured(reports))]
    if reasons:
        parts += ["Why those that are missed are missed:", "\n".join(reasons)]
    operators = [report for report in reports if isinstance(report, OperatorBenchmark)]
    if operators:
        parts.append("## Operators")
        if picture:
            parts.append(f"![Speed of {operators[0].architecture}'s products below the machine's roof]({picture})")
        parts += [_with_command(report) for report in operators]
    models = [report for report in reports if isinstance(report, ModelBenchmark)]
    if models:
        parts += ["## Models", *(_with_command(report) for report in models)]
    return "\n\n".join(parts) + "\n"


def command_of(report: Report) -> str:
    """The command that measures a report again."""
    return str(report.to_dict()["command"])


def _with_command(report: Report) -> str:
    return f"{report.to_markdown()}\n\nMeasured by `{command_of(report)}`."


def _all_met(target: Target, numbers: Sequence[Measured]) -> bool:
    return all(target.met(number) for number in numbers)


def _target_table(reports: Sequence[Report], commands: Sequence[str]) -> str:
    rows = []
    for target in TARGETS:
        numbers = target.measured(reports)
        bound = f"{'at most' if target.at_most else 'at least'} {target.bound:g} {target.unit}"
        if not numbers:
            rows.append([target.text, bound, "not measured", "", "", ""])
            continue
        worst, best = numbers[0], numbers[-1]
        verdict = (
            "met"
            if _all_met(target, numbers)
            else f"missed by {sum(not target.met(n) for n in numbers)} of {len(numbers)}"
        )
        cells = [f"{worst.value:.2f} ({worst.where})", f"{best.value:.2f}" if len(numbers) > 1 else ""]
        used = sorted({commands.index(number.command) + 1 for number in numbers})
        rows.append([target.text, bound, verdict, *cells, ", ".join(map(str, used))])
    return table(["target", "bound", "", "worst", "best", "command"], rows)
