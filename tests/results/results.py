"""Rows that nobody measured: the shapes of real ones with numbers made up for the tests of the page."""

from typing import Any

from nm_export.evaluation import Estimate
from nm_export.recipe import Recipe
from nm_export.results.measured import Facts, Measured
from nm_export.results.rows import Row


def row(name: str, pattern: str = "8:16", **changes: Any) -> Row:
    method, _, _ = name.rpartition("_")
    recipe = Recipe.from_dict({"model": {"source": "in-memory"}, "sparsity": {"pattern": pattern}})
    return Row(**{"name": name, "method": method, "title": method.title(), "recipe": recipe, **changes})


def scores(ratio: float | None, error: float | None = 0.0125) -> dict[str, Any]:
    """As `TextScores.to_dict` writes them, for a dense perplexity of 20."""
    perplexity = None if ratio is None else 20 * ratio
    return {
        "windows": 2,
        "scored_tokens": 62,
        "perplexity": {"value": perplexity, "stderr": 1.0},
        "dense_perplexity": {"value": 20.0, "stderr": 0.5},
        "ratio": {"value": ratio, "stderr": error},
        "kl": {"value": 0.75, "stderr": 0.01},
        "top1_agreement": {"value": 0.5, "stderr": 0.01},
    }


def measured(name: str, pattern: str = "8:16", *, ratio: float | None = 2.0, saved: float = 0.5, **changes: Any) -> Any:
    cost = {
        "saved_share": saved,
        "pruned_share": 1.0,
        "added_share": changes.pop("added", 0.0),
        "parameter_bytes": 12_000,
        "cpu_seconds": {"calibrate": 3.0, "learn": 4.0},
    }
    machine = {"processor": "A", "cores": 2, "threads": 1, "python": "3.11.7", "versions": {"torch": "2.13.0"}}
    more = {"tasks": changes.pop("tasks", {}), "drop": changes.pop("drop", None), "older": changes.pop("older", False)}
    return Measured(row(name, pattern, **changes), cost, machine, {"one": scores(ratio)}, **more)


FACTS = Facts(
    model="a/model",
    texts={
        "one": {"text": "/somewhere/one.txt", "split": "all", "windows": 2, "window": 32, "text_sha256": "ab" * 32},
    },
    asked={"piqa_jsonl": (200, 1838)},
    dense_tasks={"piqa_jsonl": Estimate(0.7, 0.03)},
    command="make results",
)
