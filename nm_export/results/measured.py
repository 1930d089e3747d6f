"""What the page and the picture are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nm_export.evaluation import Estimate
from nm_export.results.rows import Row


@dataclass(frozen=True)
class Measured:
    """What is known of a row.

    Attributes:
        row: the row.
        cost: JSON values: MACs saved and added (shares of the decoder linears'), bytes and seconds; None: not measured.
        machine: where it was measured.
        texts: `TextScores.to_dict` by the title of the text.
        tasks: accuracy by task.
        drop: mean relative drop over the tasks, in percent.
        older: whether some of it was measured by another state of the code, or other versions of libraries.
    """

    row: Row
    cost: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[str, Estimate] = field(default_factory=dict)
    drop: Estimate | None = None
    older: bool = False


@dataclass(frozen=True)
class Facts:
    """What all rows have in common.

    Attributes:
        model: the model's source.
        texts: provenance of each text's windows, by title.
        asked: examples asked of each task, and examples that it has.
        dense_tasks: the dense model's accuracy by task.
        command: how the page is made again.
    """

    model: str
    texts: Mapping[str, Mapping[str, Any]]
    asked: Mapping[str, tuple[int, int]]
    dense_tasks: Mapping[str, Estimate]
    command: str
