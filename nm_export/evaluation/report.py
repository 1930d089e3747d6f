"""The result of an evaluation: numbers for JSON, a Markdown table for people."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nm_export.evaluation.estimate import Estimate
from nm_export.evaluation.generation_scores import GRAM, GenerationScores
from nm_export.evaluation.task_scores import TaskScore, mean_relative_drop, relative_drop
from nm_export.evaluation.text_scores import TextScores
from nm_export.tables import Markdown


@dataclass(frozen=True)
class TextResult:
    """Scores on one text, exactly which text it was, and how the starts of its windows are continued, if asked."""

    name: str
    provenance: dict[str, Any]
    scores: TextScores
    generation: GenerationScores | None = None

    @property
    def title(self) -> str:
        """A short name for tables: of a file or folder, its last part."""
        path = Path(self.name).expanduser()
        return path.resolve().name if path.exists() else self.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        generation = None if self.generation is None else self.generation.to_dict()
        return {**self.provenance, **self.scores.to_dict(), "generation": generation}


@dataclass(frozen=True)
class TaskResult:
    """Scores on one task, of the model and of the dense model on the same examples."""

    score: TaskScore
    dense: TaskScore | None
    available: int
    """Examples that the task has; `score.examples` of them were asked."""

    @property
    def drop(self) -> Estimate | None:
        """Relative drop in percent."""
        return None if self.dense is None else relative_drop(self.score, self.dense)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            **self.score.to_dict(),
            "available": self.available,
            "dense_metrics": (
                None if self.dense is None else {name: e.to_dict() for name, e in self.dense.metrics.items()}
            ),
            "relative_drop_percent": self.drop.to_dict() if self.drop else None,
        }


@dataclass(frozen=True)
class Evaluation:
    """Everything that `evaluate` measured.

    Attributes:
        name: short name of the model.
        model: its provenance.
        dense: provenance of the dense model, or None.
        texts: one result a text.
        tasks: one result a task.
        limit: at most so many examples a task, or None.
        seed: of their choice.
        versions: of the packages that compute.
    """

    name: str
    model: dict[str, Any]
    dense: dict[str, Any] | None
    texts: tuple[TextResult, ...]
    tasks: tuple[TaskResult, ...]
    limit: int | None
    seed: int
    versions: dict[str, str]

    @property
    def mean_relative_drop(self) -> Estimate | None:
        """The paper's mean over tasks of (dense - sparse) / dense, in percent."""
        dense = {task.score.task: task.dense for task in self.tasks if task.dense is not None}
        return mean_relative_drop({task.score.task: task.score for task in self.tasks}, dense)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        drop = self.mean_relative_drop
        return {
            "format": 1,
            "model": self.model,
            "dense": self.dense,
            "texts": [text.to_dict() for text in self.texts],
            "tasks": [task.to_dict() for task in self.tasks],
            "limit": self.limit,
            "seed": self.seed,
            "mean_relative_drop_percent": drop.to_dict() if drop else None,
            "versions": self.versions,
        }

    def to_markdown(self) -> str:
        """Return the tables, with what was measured below each."""
        parts = []
        if self.texts:
            parts.append(_table(*self._text_table()))
            parts.append("\n".join(f"- {_described(text)}" for text in self.texts))
        if any(text.generation for text in self.texts):
            parts.append(_table(*self._generation_table()))
            parts.append("\n".join(f"- {_about(text)}" for text in self.texts if text.generation))
        if self.tasks:
            parts.append(_table(*self._task_table()))
            parts.append(self._about_tasks())
        return "\n\n".join(parts) + "\n"

    def __rich__(self) -> Markdown:
        return Markdown(self.to_markdown())

    def _text_table(self) -> tuple[list[str], list[list[str]]]:
        if self.dense is None:
            rows = [[text.title, text.scores.perplexity.format(3)] for text in self.texts]
            return ["text", f"perplexity, {self.name}"], rows
        header = ["text", "perplexity, dense", f"perplexity, {self.name}", "ratio", "KL, nats", "equal top-1"]
        rows = []
        for text in self.texts:
            s = text.scores
            rows.append(
                [
                    text.title,
                    _cell(s.dense_perplexity, 3),
                    _cell(s.perplexity, 3),
                    _cell(s.ratio, 4),
                    _cell(s.kl, 4),
                    _cell(s.top1_agreement, 1, scale=100, unit=" %"),
                ]
            )
        return header, rows

    def _generation_table(self) -> tuple[list[str], list[list[str]]]:
        header = ["continued greedily", "written by", "perplexity to the dense", "tokens as the dense", "repeated"]
        rows = []
        for text in self.texts:
            g = text.generation
            if g is None:
                continue
            if self.dense is not None:
                repeated = _cell(g.dense_repeated, 1, scale=100, unit=" %")
                rows.append([text.title, "dense", _cell(g.dense_perplexity, 3), str(g.new_tokens), repeated])
            repeated = _cell(g.repeated, 1, scale=100, unit=" %")
            rows.append([text.title, self.name, _cell(g.perplexity, 3), _cell(g.shared_tokens, 1), repeated])
        return header, rows

    def _task_table(self) -> tuple[list[str], list[list[str]]]:
        header = ["task", "metric", self.name] if self.dense is None else ["task", "metric", "dense", self.name, "drop"]
        rows = []
        for task in self.tasks:
            for metric, estimate in task.score.metrics.items():
                row = [task.score.task, metric, estimate.format(4)]
                if task.dense is not None:
                    row.insert(2, task.dense.metrics[metric].format(4))
                    row.append(_cell(task.drop if metric == task.score.main else None, 2, unit=" %"))
                rows.append(row)
        drop = self.mean_relative_drop
        if drop:
            rows.append(["**mean relative drop**", "", "", "", drop.format(2, unit=" %")])
        return header, rows

    def _about_tasks(self) -> str:
        asked = ", ".join(f"{task.score.task} {task.score.examples} of {task.available}" for task in self.tasks)
        return f"- Examples asked: {asked}" + ("" if self.limit is None else f" (seed {self.seed})")


def _cell(estimate: Estimate | None, digits: int, *, scale: float = 1.0, unit: str = "") -> str:
    return "" if estimate is None else estimate.format(digits, scale=scale, unit=unit)


def _described(text: TextResult) -> str:
    p = text.provenance
    return (
        f"{text.name} ({p['split']}): {p['windows']} windows of {p['window']} tokens, "
        f"{text.scores.scored_tokens:,} tokens scored, text SHA-256 {p['text_sha256'][:16]}"
    )


def _about(text: TextResult) -> str:
    g = text.generation
    assert g is not None
    return (
        f"{text.name}: the first {g.prompt_tokens} tokens of {g.prompts} windows, continued by {g.new_tokens} tokens; "
        f"repeated: runs of {GRAM} tokens that were written before"
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)
