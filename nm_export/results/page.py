"""docs/results.md: tables of what has been measured, and how."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nm_export.evaluation import Estimate
from nm_export.results.measured import Facts, Measured
from nm_export.results.store import write_text

_SAME_SAVINGS = ("2:4", "4:8", "8:16", "16:32", "50%")
_OF_16 = ("12:16", "10:16", "8:16", "6:16")
_TASK_TITLES = {"piqa_jsonl": "PIQA", "arc_easy_jsonl": "ARC-Easy"}


def write_page(path: Path, picture: Path | None, results: Sequence[Measured], facts: Facts) -> None:
    """Write the page, whole or not at all; rows that have not been measured are named at its end."""
    write_text(path, to_markdown(results, facts, picture.name if picture is not None else None))


def to_markdown(results: Sequence[Measured], facts: Facts, picture: str | None = None) -> str:
    """Return the page.

    Args:
        results: all rows, measured or not.
        facts: what they have in common.
        picture: relative path of the picture.
    """
    measured = [result for result in results if result.texts]
    methods = [r for r in measured if r.row.pattern == "8:16" and not r.row.shipped]
    shipped = [r for r in measured if r.row.shipped]
    parts = ["# Results", _INTRODUCTION.format(model=facts.model, command=facts.command)]
    if picture:
        parts.append(f"![Perplexity against the share of multiplications saved]({picture})")
    parts += [
        _section("Methods: every linear at 8:16", _METHODS, _quality_table(methods, facts)),
        _section("Recipes", _RECIPES, _quality_table(shipped, facts, patterns=True)),
        _section("Tasks", _about_tasks(facts), _task_table([*methods, *shipped], facts)),
        _section("Patterns that save half", _PATTERNS, _pattern_tables(measured, _SAME_SAVINGS, facts)),
        _section("From 12:16 to 6:16", _SHARES, _pattern_tables(measured, _OF_16, facts)),
        f"## How it was measured\n\n{_protocol(measured, facts)}" if measured else "",
    ]
    missing = [result.row.name for result in results if set(result.texts) != set(facts.texts)]
    if missing:
        parts.append(f"Not measured yet, or not on every text: {', '.join(missing)}.")
    return "\n\n".join(part for part in parts if part) + "\n"


_METHODS = """Every linear layer of the decoder, every token, the prompt included. *Ratio*: perplexity over the dense
model's, ± the standard error of the paired difference over the windows. *KL*: mean divergence from the dense model's
predictions, in nats. *Saved* and *added*: shares of the multiplications of all decoder linears. *Calibration*:
processor time, which a busy machine does not stretch. *Extra*: bytes of the parameters that come with the sparsity.
Methods marked † are trained here on less than their recipes say; below the table stands on how much. Rows marked ‡
were measured by an earlier state of the code; the same command measures them again."""
_RECIPES = """The recipes for users, as they are. Those that prune only the layers that bear it save less than half."""
_PATTERNS = """Half of the multiplications of every linear layer saved, at different freedom of choice: groups of 4,
8, 16, 32 channels, or all channels of a token (50 %). Ratios of the perplexity to the dense model's."""
_SHARES = """Groups of 16, from a quarter of the multiplications saved to five eighths. Ratios, as above."""
_INTRODUCTION = """Every method of this package on one model, {model}, under one protocol, beside the dense model.
What the methods are is said in [methods](methods.md); each row of the first table is a recipe of `recipes/paper/`.
This page is written by `{command}`: do not edit it.

Differences of a few percent between two rows are within the noise of so few windows: rounding alone moves the
perplexity of a sparse model by 1 to 2 % ([evaluation](evaluation.md))."""
_TASKS = """Zero-shot accuracy on {asked}, chosen with seed 0, the same for every row; ± the standard error. *Drop*:
mean of (dense - sparse) / dense over the tasks, ± the standard error of the paired difference."""
_PROTOCOL = """The protocol is that of `nm-export evaluate` ([evaluation](evaluation.md)): PyTorch, float32, four
windows in a forward pass (one for `clact_noncausal`), no cache, the first token of a window not scored.

{texts}

Statistics are gathered, and parameters trained, on {datasets}, which none of these texts is part of.

{machines}"""


def _section(title: str, text: str, table: str) -> str:
    return f"## {title}\n\n{text}\n\n{table}" if table else ""


def _quality_table(results: Sequence[Measured], facts: Facts, *, patterns: bool = False) -> str:
    if not results:
        return ""
    header = ["recipe" if patterns else "method", *(["pattern"] if patterns else [])]
    for title in facts.texts:
        header += [title, "ratio", "KL"]
    header += ["saved", "added", "calibration", "extra"]
    dense = ["dense", *([""] if patterns else [])]
    for title in facts.texts:
        known = [r.texts[title]["dense_perplexity"]["value"] for r in results if title in r.texts]
        dense += [f"{known[0]:.2f}" if known else "", "1", "0"]
    rows = [[*dense, "", "", "", ""]]
    notes = []
    for result in results:
        mark = ("†" if result.row.note else "") + ("‡" if result.older else "")
        if result.row.note:
            notes.append(f"† {result.row.title}: {result.row.note}.")
        cells = [f"{result.row.title}{mark}", *([result.row.pattern] if patterns else [])]
        for title in facts.texts:
            cells += _quality_cells(result.texts.get(title))
        rows.append([*cells, *_cost_cells(result)])
    return "\n\n".join([_table(header, rows), *notes])


def _quality_cells(scores: dict[str, Any] | None) -> list[str]:
    if scores is None:
        return ["", "", ""]
    ratio, error = scores["ratio"]["value"], scores["ratio"]["stderr"]
    spread = f" ± {error:.3f}" if error is not None and ratio is not None else ""
    return [
        _number(scores["perplexity"]["value"], 2),
        _number(ratio, 3) + spread,
        _number(scores["kl"]["value"], 3),
    ]


def _number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def _cost_cells(result: Measured) -> list[str]:
    cost = result.cost
    if cost is None:
        return ["", "", "", ""]
    added = f"{cost['added_share']:.1%}" if cost["added_share"] else "0"
    seconds = sum(cost["cpu_seconds"].values())
    extra = f"{cost['parameter_bytes'] / 1000:,.0f} kB" if cost["parameter_bytes"] else "0"
    return [f"{cost['saved_share']:.1%}", added, f"{seconds:,.0f} s" if seconds >= 0.5 else "0", extra]


def _about_tasks(facts: Facts) -> str:
    asked = " and ".join(
        f"{count} of the {available:,} questions of {_TASK_TITLES.get(task, task)}"
        for task, (count, available) in facts.asked.items()
    )
    return _TASKS.format(asked=asked)


def _task_table(results: Sequence[Measured], facts: Facts) -> str:
    results = [result for result in results if result.tasks]
    if not results or not facts.asked:
        return ""
    header = ["method", *(_TASK_TITLES.get(task, task) for task in facts.asked), "drop"]

    def cells(tasks: Mapping[str, Estimate]) -> list[str]:
        return [tasks[task].format(1, scale=100, unit=" %") if task in tasks else "" for task in facts.asked]

    rows = [["dense", *cells(facts.dense_tasks), "0"]]
    for result in results:
        drop = result.drop.format(1, unit=" %") if result.drop is not None else ""
        rows.append([result.row.title, *cells(result.tasks), drop])
    return _table(header, rows)


def _pattern_tables(results: Sequence[Measured], patterns: Sequence[str], facts: Facts) -> str:
    """One table a text: methods down, patterns across; only methods with more than one of the patterns."""
    lines = by_method(results, lambda result: result.row.pattern in patterns)
    tables = []
    for title in facts.texts:
        rows = []
        for line in lines:
            found = {r.row.pattern: r.texts[title]["ratio"]["value"] for r in line if title in r.texts}
            if len(found) > 1:
                cells = [_number(found[pattern], 3) if pattern in found else "" for pattern in patterns]
                rows.append([line[0].row.title, *cells])
        if rows:
            tables.append(f"{title}:\n\n" + _table(["method", *patterns], rows))
    return "\n\n".join(tables)


def by_method(results: Sequence[Measured], wanted: Callable[[Measured], bool]) -> list[list[Measured]]:
    """Measured rows of the paper's methods that are wanted, those of one method together."""
    lines: dict[str, list[Measured]] = {}
    for result in results:
        if result.texts and not result.row.shipped and wanted(result):
            lines.setdefault(result.row.method, []).append(result)
    return list(lines.values())


def _protocol(results: Sequence[Measured], facts: Facts) -> str:
    texts = "\n".join(
        f"- {title}: {p['windows']} consecutive windows of {p['window']} tokens from the start of "
        f"`{Path(str(p['text'])).name}` ({p['split']}), SHA-256 of the text read {p['text_sha256'][:16]}"
        + (f", of Python {p['python']}" if "python" in p else "")
        for title, p in facts.texts.items()
    )
    sections = [result.row.recipe.calibration for result in results]
    datasets = sorted({f"`{Path(section.dataset).name}` (`{section.split}`)" for section in sections})
    machines: dict[str, int] = {}
    for result in results:
        if result.machine is not None:
            name = _machine(result.machine)
            machines[name] = machines.get(name, 0) + 1
    where = "\n".join(f"- {count} row{'s' if count > 1 else ''}: {name}" for name, count in machines.items())
    return _PROTOCOL.format(texts=texts, datasets=", ".join(datasets), machines=where)


def _machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} thread"
        f"{'' if machine['threads'] == 1 else 's'}; Python {machine['python']}, {versions}"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
