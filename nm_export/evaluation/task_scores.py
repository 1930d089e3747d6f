"""Scores on tasks, and the paper's mean relative drop."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nm_export.evaluation.estimate import Estimate, mean_estimate


@dataclass(frozen=True)
class TaskScore:
    """What a model reached on one task.

    Attributes:
        task: the task's name.
        metrics: every metric that the task defines, with the harness's standard error.
        main: the metric that counts: `acc` if the task has it, else the first of which more is better; None without.
        examples: number of examples.
        num_fewshot: solved examples in front of each question; 0 for a zero-shot task.
        version: the task's version in the harness, as text.
        values: the main metric of each example, in order; empty where the harness gives none.
    """

    task: str
    metrics: dict[str, Estimate]
    main: str | None
    examples: int
    num_fewshot: int
    version: str
    values: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without those of the single examples."""
        return {
            "task": self.task,
            "metrics": {name: estimate.to_dict() for name, estimate in self.metrics.items()},
            "main": self.main,
            "examples": self.examples,
            "num_fewshot": self.num_fewshot,
            "version": self.version,
        }


TaskScores = Mapping[str, TaskScore]
"""By the name of the task."""


def relative_drop(score: TaskScore, dense: TaskScore) -> Estimate | None:
    """Return (dense - score) / dense of the main metric in percent; positive where the model lost something.

    The standard error is that of the paired difference over the examples, with the dense score in the divisor taken as
    exact. None where there is no main metric or the dense model reached nothing.
    """
    if score.main is None or score.main not in dense.metrics:
        return None
    reached, possible = score.metrics[score.main].value, dense.metrics[score.main].value
    if possible <= 0:
        return None
    error = None
    if score.values and len(score.values) == len(dense.values):
        paired = mean_estimate([b - a for a, b in zip(score.values, dense.values, strict=True)])
        error = None if paired.stderr is None else 100 * paired.stderr / possible
    return Estimate(100 * (possible - reached) / possible, error)


def mean_relative_drop(scores: TaskScores, dense: TaskScores) -> Estimate | None:
    """Return the unweighted mean of `relative_drop` over the tasks that both models have, in percent.

    The measure of arXiv 2509.22166. Tasks on which the drop is not defined are left out; None when none is left. The
    tasks' errors are taken as independent.
    """
    drops = [relative_drop(score, dense[task]) for task, score in scores.items() if task in dense]
    return mean_of_drops([drop for drop in drops if drop is not None])


def mean_of_drops(drops: Sequence[Estimate]) -> Estimate | None:
    """Return the mean of independent estimates; its error is None where one of theirs is."""
    if not drops:
        return None
    errors = [drop.stderr for drop in drops if drop.stderr is not None]
    error = math.hypot(*errors) / len(drops) if len(errors) == len(drops) else None
    return Estimate(math.fsum(drop.value for drop in drops) / len(drops), error)
