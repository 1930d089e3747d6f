"""One row of the table: prepare the model of a recipe, score it on texts and tasks beside the dense model."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nm_export.calibration.documents import BUILTIN
from nm_export.calibration.processes import Processes
from nm_export.calibration.text import load_text
from nm_export.digests import digest
from nm_export.errors import UserError
from nm_export.evaluation import (
    Estimate,
    RememberedLogits,
    TaskScore,
    TaskSuite,
    TextWindows,
    evaluate_tasks,
    evaluate_text,
    load_tasks,
    mean_relative_drop,
    read_windows,
    torch_logits,
)
from nm_export.preparation import Prepared, prepare
from nm_export.recipe import CalibrationSection, EvaluationSection, ModelSection
from nm_export.results.measured import Facts, Measured
from nm_export.results.rows import Row
from nm_export.results.store import Store, code_digest
from nm_export.sources import load_model
from nm_export.stages import Stages
from nm_export.versions import installed_versions

TASKS = ("piqa_jsonl", "arc_easy_jsonl")
DENSE = "dense"

# what the parameters of a model depend on; the parts that only some rows use are counted for those rows only
_CODE = (
    "plan.py",
    "tokenizer_files.py",
    "modeling/modeling_nm_sparse.py",
    "calibration/bias.py",
    "calibration/calibrate.py",
    "calibration/documents.py",
    "calibration/quantiles.py",
    "calibration/residual.py",
    "calibration/scores.py",
    "calibration/statistics.py",
    "calibration/text.py",
    "calibration/weight_pruning.py",
)
_BUDGET_CODE = ("preparation.py", "calibration/allocation.py")
_LEARNING_CODE = ("preparation.py", "learning/*.py")
_TEXT_CODE = ("evaluation/text_scores.py", "evaluation/estimate.py")
_TASK_CODE = ("evaluation/harness.py", "evaluation/harness_model.py", "evaluation/task_scores.py")


class CpuStages(Stages):
    """Stages that also know the processor time of each, which a busy machine does not stretch.

    Attributes:
        cpu_seconds: processor seconds of each finished stage, of all threads together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cpu_seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, description: str) -> Iterator[None]:
        """Do as `Stages.stage`."""
        start = time.process_time()
        with super().stage(name, description):
            yield
        self.cpu_seconds[name] = round(time.process_time() - start, 2)


class Bench:
    """The protocol: one dense model, the texts and the tasks that every row is measured on.

    Args:
        model: the dense model, which all recipes must name.
        store: what has been measured.
        texts: of `read_windows`, by the title that they have in tables.
        windows: windows of each text.
        window: tokens in a window.
        task_data: folder with the data of `TASKS`; None asks no tasks.
        limit: examples of each task.

    Raises:
        UserError: the model, a text or the tasks' data cannot be had.
    """

    def __init__(
        self,
        model: ModelSection,
        store: Store,
        texts: dict[str, str],
        *,
        windows: int,
        window: int,
        task_data: Path | None = None,
        limit: int = 200,
    ) -> None:
        self.store, self.section, self.limit = store, model, limit
        self.dense, self.tokenizer, self.provenance = load_model(model)
        self.texts: dict[str, TextWindows] = {
            title: read_windows(self.tokenizer, text, window=window, windows=windows) for title, text in texts.items()
        }
        self.suite: TaskSuite | None = None
        if task_data is not None:
            self.suite = load_tasks(TASKS, task_data=task_data, limit=limit)
        self._remembered = RememberedLogits(self.dense)
        self._documents: dict[str, str] = {}

    def measured(self, row: Row) -> Measured:
        """Return what is known of a row under this protocol."""
        known = self.store.load(row.name, self.key(row))
        parts, keys = known.get("parts", {}), self._part_keys
        tasks = parts.get(keys.get("tasks", ""), {}) if row.with_tasks else {}
        scores = {task: _task_score(task, values) for task, values in tasks.items()}
        return Measured(
            row,
            cost=known.get("cost"),
            machine=known.get("measured_on"),
            older=bool(parts) and bool(self._missing(row, known).keys() & {p for p, k in keys.items() if k in parts}),
            texts={title: parts[keys[title]] for title in self.texts if keys[title] in parts},
            tasks={task: score.metrics["acc"] for task, score in scores.items()},
            drop=mean_relative_drop(scores, self._dense_scores()) if scores else None,
        )

    def complete(self, row: Row) -> bool:
        """Whether nothing of the row is missing."""
        return not self._missing(row, self.store.load(row.name, self.key(row)))

    def measure(self, row: Row) -> None:
        """Measure what is missing of a row, or was measured by other code; every finished part is kept at once.

        Raises:
            UserError: the recipe names another model, or does not fit it.
        """
        if row.recipe.model != self.section:
            raise UserError(f"{row.name} names {row.recipe.model.source}, the other rows {self.section.source}")
        key = self.key(row)
        known = self.store.load(row.name, key)
        missing = self._missing(row, known)
        if not missing:
            return
        if known.get("code") != self._code(row):
            known = {}
        prepared = self._prepare(row, known)
        batch = {"batch_size": 1} if row.recipe.sparsity.score == "clact_noncausal" else {}
        for part, key_of_part in missing.items():
            if part == "tasks":
                assert self.suite is not None
                scores = evaluate_tasks(prepared.model, self.tokenizer, self.suite, **batch)
                values = {task: _task_values(score) for task, score in scores.items()}
            else:
                text = self.texts[part].input_ids
                logits = torch_logits(prepared.model)
                scored = evaluate_text(logits, self._remembered, text, description=part, **batch)
                values = scored.to_dict()
            known["parts"][key_of_part] = values
            known["code_of_parts"][key_of_part] = self._code_of_parts[part]
            self.store.save(row.name, key, known)

    def measure_dense_tasks(self) -> None:
        """Measure the dense model on the tasks, unless that is known. Its texts are measured with every row."""
        if self.suite is None or self._dense_scores():
            return
        scores = evaluate_tasks(self.dense, self.tokenizer, self.suite)
        values = {task: _task_values(score) for task, score in scores.items()}
        known = {"parts": {self._part_keys["tasks"]: values}, "measured_on": _machine()}
        self.store.save(DENSE, self._dense_key, known)

    def facts(self, command: str) -> Facts:
        """What all rows have in common; `command` makes the page again."""
        suite = self.suite
        return Facts(
            model=self.provenance.get("base_model") or self.section.source,
            texts={title: text.provenance for title, text in self.texts.items()},
            asked={} if suite is None else {t: (len(suite.examples[t]), suite.available[t]) for t in suite.tasks},
            dense_tasks={task: score.metrics["acc"] for task, score in self._dense_scores().items()},
            command=command,
        )

    def key(self, row: Row) -> str:
        """Hash of what a row's model is: recipe, weights, calibration text."""
        settings = _settings(row)
        return digest(
            {
                "sparsity": settings["sparsity"],
                "calibration": settings["calibration"],
                "learning": settings["learning"] if row.learned else None,
                "text": self._text_digest(row.recipe.calibration),
                "model": [self.provenance["weights_sha256"], self.provenance["dtype"]],
            }
        )

    @staticmethod
    def _code(row: Row) -> str:
        """Hash of what makes the row's model of that: this package's code, libraries."""
        code = [*_CODE]
        code += _BUDGET_CODE if row.recipe.sparsity.budget is not None else ()
        code += _LEARNING_CODE if row.learned else ()
        return digest([code_digest(*code), installed_versions(["torch", "transformers"])])

    @cached_property
    def _dense_key(self) -> str:
        model = [self.provenance["weights_sha256"], self.provenance["dtype"]]
        return digest({"model": model, "versions": installed_versions(["torch", "transformers"])})

    @cached_property
    def _part_keys(self) -> dict[str, str]:
        """The key of each text, and of the tasks, in a row's file: what the model reads."""
        keys = {title: f"text-{text.provenance['ids_sha256'][:16]}" for title, text in self.texts.items()}
        if self.suite is not None:
            asked = {
                name: [task.eval_docs[index] for index in self.suite.examples[name]]
                for name, task in self.suite.tasks.items()
            }
            keys["tasks"] = f"tasks-{digest(asked)[:16]}"
        return keys

    @cached_property
    def _code_of_parts(self) -> dict[str, str]:
        """Hash of what scores each part."""
        codes = dict.fromkeys(self.texts, code_digest(*_TEXT_CODE))
        if self.suite is not None:
            codes["tasks"] = digest([code_digest(*_TASK_CODE), installed_versions(["lm_eval"])])
        return codes

    def _missing(self, row: Row, known: dict[str, Any]) -> dict[str, str]:
        """The key of each part that is not there, or was measured by other code."""
        current = known.get("code_of_parts", {}) if known.get("code") == self._code(row) else {}
        return {
            part: key
            for part, key in self._part_keys.items()
            if (part != "tasks" or row.with_tasks) and current.get(key) != self._code_of_parts[part]
        }

    def _dense_scores(self) -> dict[str, TaskScore]:
        parts = self.store.load(DENSE, self._dense_key).get("parts", {})
        known = parts.get(self._part_keys.get("tasks", ""), {})
        return {task: _task_score(task, values) for task, values in known.items()}

    def _prepare(self, row: Row, known: dict[str, Any]) -> Prepared:
        stages = CpuStages()
        # the windows are the protocol's, and no text of the recipe's own is held out
        held_out = EvaluationSection(enabled=False, dataset=BUILTIN, num_samples=1, sequence_length=2)
        prepared = prepare(
            row.recipe.model_copy(update={"evaluation": held_out}),
            stages,
            Processes(),
            self.store.checkpoints(f"{row.name}-{digest([self.key(row), self._code(row)])[:16]}"),
        )
        work = ("allocate", "calibrate", "learn")
        added = {
            name: tensor.numel() * tensor.element_size()
            for name, tensor in prepared.model.state_dict().items()
            if ".nm_" in name
        }
        known.setdefault(
            "cost",
            {
                "saved_share": prepared.plan.saved_share,
                "pruned_share": prepared.plan.pruned_share,
                "added_share": prepared.plan.added_share,
                "parameter_bytes": sum(added.values()),
                "rewritten": len(prepared.model.config.sparsity["rewritten"]),
                "seconds": {name: stages.seconds[name] for name in work if name in stages.seconds},
                "cpu_seconds": {name: stages.cpu_seconds[name] for name in work if name in stages.cpu_seconds},
                "held_out_loss": prepared.learning.to_dict()["held_out"] if prepared.learning else None,
            },
        )
        known["measured_on"] = _machine()
        settings = _settings(row)
        known["row"], known["note"] = row.name, row.note
        known["recipe"] = {section: settings[section] for section in ("model", "sparsity", "calibration", "learning")}
        known["code"] = self._code(row)
        known.setdefault("parts", {})
        known.setdefault("code_of_parts", {})
        return prepared

    def _text_digest(self, section: CalibrationSection) -> str:
        name = section.model_dump_json()
        if name not in self._documents:
            self._documents[name] = digest(list(load_text(section)))
        return self._documents[name]


def _settings(row: Row) -> dict[str, Any]:
    """The recipe as a dictionary, in which a local text has its name only: what it says is known by its hash."""
    settings = row.recipe.to_dict()
    dataset = Path(settings["calibration"]["dataset"])
    if dataset.is_file():
        settings["calibration"]["dataset"] = dataset.name
    return settings


def _task_values(score: TaskScore) -> dict[str, Any]:
    return {**score.to_dict(), "values": list(score.values)}


def _task_score(task: str, values: dict[str, Any]) -> TaskScore:
    metrics = {name: Estimate(**estimate) for name, estimate in values["metrics"].items()}
    return TaskScore(
        task,
        metrics,
        values["main"],
        values["examples"],
        values["num_fewshot"],
        values["version"],
        tuple(values["values"]),
    )


def _machine() -> dict[str, Any]:
    """Where a row was measured."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": installed_versions(["nm_export", "torch", "transformers", "lm_eval"]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
