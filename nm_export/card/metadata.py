"""The front matter of a card, which the Hub reads: what the model is, and its evaluation as a model-index."""

import math
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from nm_export.card.facts import Facts
from nm_export.card.measured import TaskRow, TextRow, task_rows, text_rows

_METRICS = {"acc": "accuracy", "acc_norm": "accuracy"}
"""Names of the harness's metrics as the Hub knows them."""


_ALWAYS = ("sparsity", "nm-sparsity", "activation-sparsity")


def card_metadata(facts: Facts) -> dict[str, Any]:
    """Return the metadata of a card as plain values.

    What the recipe's `publish` section says comes first, then what the card beside the base model says.
    """
    results = [_text(row) for row in text_rows(facts.numbers) if math.isfinite(row.sparse.value)]
    results += [_task(row) for row in task_rows(facts.numbers)]
    own, source = facts.recipe.publish, facts.provenance["base_model"].get("card", {})
    tags = own.tags if own.tags is not None else source.get("tags", ())
    language = own.language if own.language is not None else source.get("language", ())
    terms = own.model_dump() if own.license is not None else facts.provenance["base_model"]
    data = ModelCardData(
        base_model=_one_or_many(base_models(facts)),
        datasets=list(source.get("datasets", ())) or None,
        language=_one_or_many(language),
        license=terms.get("license"),
        license_name=terms.get("license_name"),
        license_link=terms.get("license_link"),
        library_name="transformers",
        pipeline_tag=source.get("pipeline_tag", "text-generation"),
        tags=list(dict.fromkeys([*_ALWAYS, *(["onnx"] if facts.with_onnx else []), *tags])),
        model_name=facts.name,
        eval_results=results or None,
    )
    values: dict[str, Any] = data.to_dict()
    return values


def base_models(facts: Facts) -> tuple[str, ...]:
    """Hub ids of the models that this one was made from: of `model.source`, or else what its card calls its base."""
    own = facts.recipe.publish.base_model
    if own is not None:
        return own
    if facts.base_id:
        return (facts.base_id,)
    return tuple(facts.provenance["base_model"].get("card", {}).get("base_model", ()))


def _one_or_many(words: Sequence[str]) -> str | list[str] | None:
    return words[0] if len(words) == 1 else list(words) or None


def _text(row: TextRow) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=row.name,
        dataset_name=row.name,
        dataset_split=row.split,
        metric_type="perplexity",
        metric_name=f"perplexity ({row.backend}; dense model {row.dense.value:.3f}); {row.about}",
        metric_value=round(row.sparse.value, 4),
    )


def _task(row: TaskRow) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=row.task,
        dataset_name=row.task,
        metric_type=_METRICS.get(row.metric, row.metric),
        metric_name=f"{row.metric} ({row.backend}; dense model {row.dense.value:.4f}); {row.about}",
        metric_value=round(row.sparse.value, 4),
    )
