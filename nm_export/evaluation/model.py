"""Evaluate a model, beside the dense model that it was made from."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nm_export.arguments import named, require_count
from nm_export.calibration.documents import BUILTIN
from nm_export.errors import UserError
from nm_export.evaluation.generation_scores import GRAM, evaluate_generation
from nm_export.evaluation.harness import TaskSuite, evaluate_tasks, load_tasks
from nm_export.evaluation.opening import OpenModel, open_base, open_model
from nm_export.evaluation.quality import torch_logits
from nm_export.evaluation.report import Evaluation, TaskResult, TextResult
from nm_export.evaluation.task_scores import TaskScore
from nm_export.evaluation.text_scores import evaluate_text
from nm_export.evaluation.windows import WINDOW, WINDOWS, TextWindows, read_windows
from nm_export.progress import doing
from nm_export.quiet import quiet_transformers
from nm_export.versions import installed_versions

logger = logging.getLogger(__name__)

_COMPUTING = ("nm_export", "torch", "transformers", "tokenizers", "onnxruntime", "lm_eval")


def evaluate(
    model: str | Path,
    *,
    against: str | Path | None = None,
    texts: str | Path | Sequence[str | Path] = (),
    tasks: str | Sequence[str] = (),
    backend: str = "torch",
    window: int = WINDOW,
    windows: int = WINDOWS,
    generate: int = 0,
    text_column: str = "text",
    include_path: Sequence[str | Path] = (),
    task_data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str = "cpu",
) -> Evaluation:
    """Measure a model on texts and tasks, and the dense model on the same windows and examples.

    docs/evaluation.md states the protocol exactly.

    Args:
        model: see `open_model`.
        against: the dense model, opened in PyTorch; None takes what an exported folder names as its base model, if that
            can be loaded, and compares a dense model with nothing.
        texts: one or several, see `read_windows`; without texts and tasks, `builtin:python-docs`.
        tasks: one or several, see `load_tasks`, as are `include_path`, `task_data`, `limit` and `seed`.
        backend: what runs `model`: `torch` or `onnx`.
        window: tokens in a window.
        windows: at most so many windows a text.
        generate: by so many tokens both models continue the first half of every window; 0, or at least 4.
        text_column: column or JSON key that holds the text of tables.
        include_path: folders with further task files.
        task_data: folder of the data of tasks on local files.
        limit: at most so many examples a task.
        seed: of their choice.
        batch_size: windows, or continuations, in one forward pass; None is 4 and 8, and 1 for models whose tokens look
            at the whole batch (`clact_noncausal`).
        device: where torch models run.

    Raises:
        UserError: something that the user can correct.
    """
    for name, given in (("model", model), ("against", against)):
        if not isinstance(given, (str, Path)) and not (name == "against" and given is None):
            raise UserError(
                f"evaluate: {name} is {named(given)}; it takes a folder or a name. perplexity, divergence and "
                "score_layers measure models in memory."
            )
    texts = (texts,) if isinstance(texts, (str, Path)) else texts
    tasks = (tasks,) if isinstance(tasks, str) else tasks
    for name, count in (("window", window), ("windows", windows), ("limit", limit), ("batch_size", batch_size)):
        if count is not None:
            require_count(count, name, "evaluate")
    of_tasks = {"include_path": include_path, "task_data": task_data, "limit": limit, "seed": seed}
    given_for_tasks = next((name for name, value in of_tasks.items() if value), None)
    if given_for_tasks and not tasks:
        raise UserError(f"evaluate: {given_for_tasks} is about tasks; name some.")
    if generate and (generate < GRAM or (tasks and not texts)):
        raise UserError(f"--generate writes at least {GRAM} tokens, after windows of a text; give more, and a --text")
    if not texts and not tasks:
        texts = (BUILTIN,)
    # what is wrong with a task is said before a large model is loaded
    suite = load_tasks(tasks, include_path=include_path, task_data=task_data, limit=limit, seed=seed) if tasks else None
    logger.info("Loading %s", model)
    with quiet_transformers(), doing(f"Loading {model}"):
        opened = open_model(model, backend=backend, device=device)
    cut = [
        read_windows(opened.tokenizer, str(text), window=window, windows=windows, text_column=text_column)
        for text in texts
    ]
    _check_length(opened, cut, generate)
    source = against if against is not None else opened.base and opened.base.source
    if source is not None:
        logger.info("Loading %s", source)
    with quiet_transformers(), doing(f"Loading {source}"):
        dense = open_model(against, device=device) if against is not None else open_base(opened, device=device)
    if dense is None and opened.base is not None:
        logger.warning("Nothing is compared; name the dense model with --against.")
    if dense is not None:
        _check_tokenizers(opened, dense)
    return Evaluation(
        name=opened.name,
        model=opened.provenance,
        dense=None if dense is None else dense.provenance,
        texts=tuple(_text(opened, dense, text, generate, batch_size) for text in cut),
        tasks=() if suite is None else _tasks(opened, dense, suite, batch_size),
        limit=limit,
        seed=seed,
        versions=installed_versions(_COMPUTING),
    )


def _text(
    opened: OpenModel, dense: OpenModel | None, text: TextWindows, generate: int, batch_size: int | None
) -> TextResult:
    scores = evaluate_text(
        torch_logits(opened.model),
        None if dense is None else torch_logits(dense.model),
        text.input_ids,
        **_batch(opened, batch_size),
        description=text.name,
    )
    if not generate:
        return TextResult(text.name, text.provenance, scores)
    generation = evaluate_generation(
        opened.model,
        None if dense is None else dense.model,
        text.input_ids[:, : text.input_ids.shape[1] // 2],
        generate,
        **_batch(opened, batch_size),
        description=f"Continuing {text.name}",
    )
    return TextResult(text.name, text.provenance, scores, generation)


def _tasks(
    opened: OpenModel, dense: OpenModel | None, suite: TaskSuite, batch_size: int | None
) -> tuple[TaskResult, ...]:
    expected: dict[str, TaskScore] = {}
    if dense is not None:
        logger.info("Tasks, dense")
        with doing("Tasks, dense"):
            expected = evaluate_tasks(dense.model, dense.tokenizer, suite, **_batch(dense, batch_size))
    logger.info("Tasks, %s", opened.name)
    with doing(f"Tasks, {opened.name}"):
        reached = evaluate_tasks(opened.model, opened.tokenizer, suite, **_batch(opened, batch_size))
    return tuple(TaskResult(score, expected.get(name), suite.available[name]) for name, score in reached.items())


def _batch(opened: OpenModel, batch_size: int | None) -> dict[str, Any]:
    """The keyword for the batch size, if it is not left to the default."""
    if _rows_interact(opened.model):
        return {"batch_size": 1}
    return {} if batch_size is None else {"batch_size": batch_size}


def _rows_interact(model: Any) -> bool:
    """Whether what a token keeps depends on the other rows of its batch."""
    modules = model.nm_modules() if hasattr(model, "nm_modules") else {}
    return any(getattr(module, "score", None) == "clact_noncausal" for module in modules.values())


def _check_length(opened: OpenModel, texts: Sequence[TextWindows], generate: int) -> None:
    longest = getattr(opened.model.config.get_text_config(), "max_position_embeddings", None)
    for text in texts:
        window = text.input_ids.shape[1]
        for what, tokens in (
            (f"a window of {window:,} tokens", window),
            ("half a window with what --generate adds", window // 2 + generate),
        ):
            if longest is not None and tokens > longest:
                raise UserError(
                    f"{what} is longer than the context of {opened.name}, {longest:,} tokens; give a smaller --window"
                )


def _check_tokenizers(opened: OpenModel, dense: OpenModel) -> None:
    """KL and perplexity of two models compare only where the same text gives the same tokens."""
    if opened.tokenizer.get_vocab() != dense.tokenizer.get_vocab():
        raise UserError(
            f"{dense.name} has another tokenizer than {opened.name}: give the dense model that it was made from"
        )
