"""Quality and speed out of `measurements.json`, every number beside the dense model's."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nm_export.benchmark.model import ModelBenchmark
from nm_export.card.pictures import Pair, Panel
from nm_export.card.tables import table, text_name
from nm_export.evaluation import Estimate

_WINDOWS = re.compile(r"(\d+) windows of (\d+) tokens")
_BACKENDS = {"torch": "PyTorch", "onnx": "ONNX Runtime"}


@dataclass(frozen=True)
class TextRow:
    """Perplexity on one text.

    Attributes:
        name: of the text.
        split: of the text; None if it is not known.
        backend: what ran the sparse model; the dense one ran in PyTorch.
        about: how much of the text, and how it was read.
        windows: how much of it, in short, or "".
        dense: perplexity of the dense model.
        sparse: of this one.
        ratio: sparse over dense.
        kl: mean KL(dense || sparse), nats, or None.
        top1: share of equal most likely tokens, or None.
    """

    name: str
    split: str | None
    backend: str
    about: str
    windows: str
    dense: Estimate
    sparse: Estimate
    ratio: Estimate
    kl: Estimate | None
    top1: Estimate | None


@dataclass(frozen=True)
class WrittenRow:
    """Continuations of one text by one model.

    Attributes:
        name: of the text.
        model: `dense` or `sparse`.
        backend: what ran it.
        about: how much was continued, and by how much.
        perplexity: that the dense model finds in what was written.
        shared: tokens before the continuation differs from the dense model's; None for the dense model.
        repeated: share of its runs of four tokens that were written before.
    """

    name: str
    model: str
    backend: str
    about: str
    perplexity: Estimate
    shared: Estimate | None
    repeated: Estimate


@dataclass(frozen=True)
class TaskRow:
    """One metric of one task; the drop is in percent of the dense model's, and only of the main metric."""

    task: str
    metric: str
    backend: str
    about: str
    dense: Estimate
    sparse: Estimate
    drop: Estimate | None


def text_rows(numbers: dict[str, Any]) -> list[TextRow]:
    """The texts on which perplexity was measured: the export's own, then those of `nm-export evaluate`."""
    rows = []
    own = numbers.get("perplexity")
    if own:
        name, _, rest = own["text"].partition(" (")
        split, about = rest.partition(")")[0] or None, f"{own['text']}, which calibration has not seen"
        dense, sparse, ratio = (Estimate(own[key]) for key in ("dense", "sparse", "ratio"))
        windows = f"{' x '.join(_WINDOWS.findall(rest)[0])}, spread over it" if _WINDOWS.search(rest) else ""
        rows.append(TextRow(name, split, _BACKENDS["torch"], about, windows, dense, sparse, ratio, None, None))
    for evaluation in numbers.get("evaluations", ()):
        for text in evaluation["texts"]:
            name = text_name(text["text"])
            rows.append(
                TextRow(
                    name,
                    text["split"],
                    _backend(evaluation),
                    f"{name} ({text['split']}), {text['windows']} windows of {text['window']} tokens from its start, "
                    f"SHA-256 of the text {text['text_sha256'][:16]}",
                    f"{text['windows']} x {text['window']}, from its start",
                    *(_estimate(text[key]) for key in ("dense_perplexity", "perplexity", "ratio")),
                    *(_estimate(text[key]) if text[key] else None for key in ("kl", "top1_agreement")),
                )
            )
    return rows


def written_rows(numbers: dict[str, Any]) -> list[WrittenRow]:
    """The continuations that `nm-export evaluate --generate` compared, the dense model's first."""
    rows = []
    for evaluation in numbers.get("evaluations", ()):
        for text in evaluation["texts"]:
            written = text.get("generation")
            if not written:
                continue
            name = text_name(text["text"])
            about = (
                f"{name}, the first {written['prompt_tokens']} tokens of {written['prompts']} windows, continued "
                f"greedily by {written['new_tokens']} tokens"
            )
            perplexity, repeated = (_estimate(written[key]) for key in ("dense_perplexity", "dense_repeated"))
            rows.append(WrittenRow(name, "dense", _BACKENDS["torch"], about, perplexity, None, repeated))
            perplexity, shared, repeated = (_estimate(written[k]) for k in ("perplexity", "shared_tokens", "repeated"))
            rows.append(WrittenRow(name, "sparse", _backend(evaluation), about, perplexity, shared, repeated))
    return rows


def task_rows(numbers: dict[str, Any]) -> list[TaskRow]:
    """The tasks that `nm-export evaluate` asked."""
    return [
        TaskRow(
            task["task"],
            metric,
            _backend(evaluation),
            f"{task['task']}: {task['examples']:,} of {task['available']:,} examples, {task['num_fewshot']}-shot",
            _estimate(task["dense_metrics"][metric]),
            _estimate(value),
            _estimate(task["relative_drop_percent"])
            if metric == task["main"] and task["relative_drop_percent"]
            else None,
        )
        for evaluation in numbers.get("evaluations", ())
        for task in evaluation["tasks"]
        for metric, value in task["metrics"].items()
    ]


def benchmarks(numbers: dict[str, Any]) -> list[ModelBenchmark]:
    """What `nm-export bench` measured."""
    return [ModelBenchmark.from_dict(values) for values in numbers.get("speed") or ()]


def text_table(rows: Sequence[TextRow]) -> str:
    """Perplexity on all texts."""
    header = ["perplexity", "tokens", "run by", "dense", "sparse", "sparse / dense"]
    further = any(row.kl for row in rows)
    header += ["KL to the dense, nats", "equal top-1"] if further else []
    cells = []
    for row in rows:
        line = [row.name, row.windows, row.backend, row.dense.format(3), row.sparse.format(3), row.ratio.format(3)]
        if further:
            line += [row.kl.format(3) if row.kl else ""]
            line += [row.top1.format(1, scale=100, unit=" %") if row.top1 else ""]
        cells.append(line)
    return table(header, cells, numbers_from=3)


def written_table(rows: Sequence[WrittenRow]) -> str:
    """All continuations."""
    header = ["written", "by", "run by", "perplexity to the dense", "tokens as the dense", "repeated"]
    cells = [
        [
            row.name,
            row.model,
            row.backend,
            row.perplexity.format(3),
            row.shared.format(1) if row.shared else "",
            row.repeated.format(1, scale=100, unit=" %"),
        ]
        for row in rows
    ]
    return table(header, cells, numbers_from=3)


def task_table(rows: Sequence[TaskRow]) -> str:
    """All tasks."""
    cells = [
        [
            row.task,
            row.metric,
            row.backend,
            row.dense.format(3),
            row.sparse.format(3),
            row.drop.format(1, unit=" %") if row.drop else "",
        ]
        for row in rows
    ]
    return table(["task", "metric", "run by", "dense", "sparse", "relative drop"], cells, numbers_from=3)


def speed_table(benchmark: ModelBenchmark) -> str:
    """Tokens per second of decoding and of reading the prompt."""
    header = ["tokens per second", "prompt", "dense", "sparse", "sparse / dense"]
    cells = [
        [label, str(prompt), f"{dense:,.1f}", f"{sparse:,.1f}", f"{sparse / dense:.2f}"]
        for label, prompt, dense, sparse in _speeds(benchmark)
    ]
    return table(header, cells)


def slower(benchmark: ModelBenchmark) -> list[str]:
    """Where the sparse model was slower than the dense one, in words."""
    return [
        f"{label}, prompt of {prompt} ({sparse / dense:.2f} times the dense model's speed)"
        for label, prompt, dense, sparse in _speeds(benchmark)
        if round(sparse / dense, 2) < 1
    ]


def quality_panels(texts: Sequence[TextRow], tasks: Sequence[TaskRow]) -> list[Panel]:
    """Bars of what was measured; only the main metrics of tasks."""
    perplexities = [
        Pair(_label(row, texts), row.dense.value, row.sparse.value, f"x {row.ratio.value:.2f}") for row in texts
    ]
    main = [row for row in tasks if row.drop is not None]
    accuracies = [
        Pair(f"{row.task}, {row.metric}, {row.backend}", 100 * row.dense.value, 100 * row.sparse.value, _drop(row.drop))
        for row in main
    ]
    panels = [
        Panel("Perplexity, lower is better", perplexities, 2),
        Panel("Score in %, higher is better", accuracies, 1),
    ]
    return [panel for panel in panels if panel.pairs]


def speed_panels(measured: Sequence[ModelBenchmark]) -> list[Panel]:
    """Bars of what was timed."""
    rows = [row for benchmark in measured for row in benchmark.rows]
    decode, prefill = [], []
    for row in rows:
        label = f"{row.runtime}, prompt of {row.prompt}"
        decode.append(Pair(label, 1 / row.dense_decode, 1 / row.sparse_decode, f"x {row.decode_ratio:.2f}"))
        prefill.append(Pair(label, *_prefill(row), f"x {row.prefill_ratio:.2f}"))
    titles = ("Decode, tokens per second, higher is better", "Prefill, tokens per second, higher is better")
    return [Panel(title, pairs, 1) for title, pairs in zip(titles, (decode, prefill), strict=True) if pairs]


def _label(row: TextRow, rows: Sequence[TextRow]) -> str:
    """Text and backend of a row, and what tells it from others that have the same."""
    alike = [other for other in rows if (other.name, other.backend) == (row.name, row.backend)]
    return f"{row.name}, {row.backend}" + (f", {row.windows}" if row.windows and alike[1:] else "")


def _speeds(benchmark: ModelBenchmark) -> Iterator[tuple[str, int, float, float]]:
    """What was timed, after a prompt of which length, and tokens per second of the dense and of the sparse model."""
    for row in benchmark.rows:
        yield f"decode, {row.runtime}", row.prompt, 1 / row.dense_decode, 1 / row.sparse_decode
        yield f"prefill, {row.runtime}", row.prompt, *_prefill(row)


def _prefill(row: Any) -> tuple[float, float]:
    return row.prompt / row.dense_prefill, row.prompt / row.sparse_prefill


def _drop(drop: Estimate | None) -> str:
    return "" if drop is None else f"{-drop.value:+.1f} %"


def _backend(evaluation: dict[str, Any]) -> str:
    return _BACKENDS.get(evaluation["model"]["backend"], evaluation["model"]["backend"])


def _estimate(values: dict[str, Any]) -> Estimate:
    value = values["value"]
    return Estimate(float("inf") if value is None else value, values["stderr"])
