"""Zero-shot tasks through lm-eval (EleutherAI's evaluation harness), on models in memory."""

import difflib
import io
import logging
import random
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from nm_export.errors import UserError
from nm_export.evaluation.estimate import Estimate
from nm_export.evaluation.task_scores import TaskScore

OWN_TASKS = Path(__file__).with_name("tasks")
"""Task files of this package: piqa_jsonl and arc_easy_jsonl, on local files."""

TASK_BATCH_SIZE = 8
"""Continuations in one forward pass."""

_BOOTSTRAP_ITERATIONS = 1000  # for metrics that are no means; means have a closed form


@dataclass(frozen=True)
class TaskSuite:
    """Tasks with their data, and the examples of each that are asked. The same object asks every model the same.

    Attributes:
        tasks: the harness's tasks by name; groups and tags are replaced by what they hold.
        examples: indices of the examples by task, in rising order.
        available: number of examples that each task has.
        limit: at most so many examples a task; None is all.
        seed: what decided which.
    """

    tasks: dict[str, Any]
    examples: dict[str, list[int]]
    available: dict[str, int]
    limit: int | None
    seed: int


def load_tasks(
    names: Sequence[str],
    *,
    include_path: Sequence[str | Path] = (),
    task_data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> TaskSuite:
    """Load tasks by name, and choose the examples.

    Args:
        names: tasks, groups or tags of the harness, of this package, or of `include_path`.
        include_path: folders with further task files (YAML); their names win over the harness's own.
        task_data: folder of the files that `jsonl_tasks.read_jsonl` reads.
        limit: at most so many examples a task, chosen by `choose_examples`.
        seed: of that choice and of few-shot examples.

    Raises:
        UserError: lm-eval is not installed, a task is unknown, its data is missing or it cannot run here.
    """
    require_harness()
    if not names:
        raise UserError("name at least one task")
    folders = [Path(folder).expanduser() for folder in include_path]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--include-path: there is no folder {folder}")
    if task_data is not None and not Path(task_data).expanduser().is_dir():
        raise UserError(f"--task-data: there is no folder {task_data}")
    with _quiet_harness():
        manager = _manager(names, folders, {} if task_data is None else {"task_data": str(task_data)})
        tasks: dict[str, Any] = {}
        for name in dict.fromkeys(names):
            tasks.update(_load(manager, name))
        for name, task in tasks.items():
            _check(name, task)
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=seed)
        available = {name: len(task.eval_docs) for name, task in tasks.items()}
    examples = {name: choose_examples(count, limit, seed) for name, count in available.items()}
    return TaskSuite(tasks, examples, available, limit, seed)


def choose_examples(count: int, limit: int | None, seed: int) -> list[int]:
    """Return the examples that are asked: `sorted(random.Random(seed).sample(range(count), limit))`, or all of them."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), limit))


def evaluate_tasks(
    model: Any, tokenizer: PreTrainedTokenizerBase, suite: TaskSuite, *, batch_size: int = TASK_BATCH_SIZE
) -> dict[str, TaskScore]:
    """Score a model on every task of a suite.

    Args:
        model: a transformers causal language model, or an `NMSparseORTModelForCausalLM`.
        tokenizer: its tokenizer; used without a chat template.
        suite: what `load_tasks` returned.
        batch_size: continuations in one forward pass; scores differ by rounding only.
    """
    import lm_eval

    from nm_export.evaluation.harness_model import HarnessModel

    with _quiet_harness():
        results: Any = lm_eval.evaluate(
            lm=HarnessModel(model, tokenizer, batch_size),
            task_dict={"tasks": suite.tasks, "groups": {}, "group_map": {}},
            samples=suite.examples,
            bootstrap_iters=_BOOTSTRAP_ITERATIONS,
            log_samples=True,
        )
    return {name: _score(name, results, len(suite.examples[name])) for name in suite.tasks}


def require_harness() -> None:
    """Raise a UserError that names the extra when lm-eval is not installed."""
    for module in ("lm_eval", "datasets"):
        if find_spec(module) is None:
            raise UserError(f'tasks need the package {module}, which is not installed: pip install "nm_export[eval]"')


def _manager(names: Sequence[str], folders: list[Path], metadata: dict[str, Any]) -> Any:
    """An index of task files. The harness's own 14,000 take seconds to read, and are read only when they are needed."""
    from lm_eval.tasks import TaskManager

    paths = [str(OWN_TASKS), *map(str, folders)]
    manager = TaskManager(include_path=paths, include_defaults=False, metadata=metadata)
    if not set(names) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=paths, metadata=metadata)
    for name in names:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "see lm-eval ls tasks for those of the harness"
            raise UserError(f"there is no task {name}; {hint} (files that are not valid task YAML are passed over)")
    return manager


def _load(manager: Any, name: str) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = manager.load([name])["tasks"]
    except UserError:
        raise
    except Exception as error:  # the harness, `datasets` and Jinja raise what they like
        reason = " ".join(str(error).split())
        if re.search(r"connect|offline|resol(?:ve|ution)|couldn't reach|timed out", reason, re.IGNORECASE):
            raise UserError(
                f"the data of the task {name} cannot be fetched: the Hugging Face Hub is out of reach; check the "
                "network, or use a task on local files (piqa_jsonl, arc_easy_jsonl, --include-path)"
            ) from error
        raise UserError(f"the task {name} cannot be loaded: {type(error).__name__}: {reason[:300]}") from error
    return loaded


def _check(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"the task {name} runs code that the model writes; run it in lm-eval itself, in a sandbox")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"the task {name} shows pictures, and these models read text only")


def _score(name: str, results: Any, examples: int) -> TaskScore:
    metrics, raw = {}, results["results"][name]
    for key, value in raw.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = raw.get(f"{metric}_stderr,{filtered}")
        label = metric if filtered == "none" else key
        metrics[label] = Estimate(float(value), float(error) if isinstance(error, int | float) else None)
    better = results["higher_is_better"].get(name, {})
    main = next((m for m in metrics if m == "acc"), None)
    main = main or next((m for m in metrics if better.get(m.partition(",")[0])), None)
    return TaskScore(
        task=name,
        metrics=metrics,
        main=main,
        examples=examples,
        num_fewshot=int(results["n-shot"].get(name) or 0),
        version=str(results["versions"].get(name)),
        values=_values(results["samples"][name], main),
    )


def _values(samples: list[dict[str, Any]], main: str | None) -> tuple[float, ...]:
    """The main metric of each example, in the order of the examples; nothing where it is not one number each."""
    if main is None:
        return ()
    metric, _, filtered = main.partition(",")
    chosen = sorted((s for s in samples if s["filter"] == (filtered or "none")), key=lambda s: int(s["doc_id"]))
    values = [sample.get(metric) for sample in chosen]
    if not all(isinstance(value, int | float) for value in values):
        return ()
    return tuple(float(value) for value in values if value is not None)


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Keep the harness's remarks out of our output; its bars are drawn on terminals only."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(sys.stderr))
            if not sys.stderr.isatty():
                stack.enter_context(redirect_stderr(io.StringIO()))
            yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bar()
