"""The front matter of a card, which the Hub reads: what the model is, and its evaluation as a model-index."""

import math

from huggingface_hub import EvalResult, ModelCardData

from nm_export.card.facts import Facts
from nm_export.card.measured import TaskRow, TextRow, task_rows, text_rows

_METRICS = {"acc": "accuracy", "acc_norm": "accuracy"}
"""Names of the harness's metrics as the Hub knows them."""


def card_data(facts: Facts) -> ModelCardData:
    """Return the metadata of a card."""
    results = [_text(row) for row in text_rows(facts.numbers) if math.isfinite(row.sparse.value)]
    results += [_task(row) for row in task_rows(facts.numbers)]
    base = facts.provenance["base_model"]
    return ModelCardData(
        base_model=facts.base_id,
        license=base.get("license"),
        license_name=base.get("license_name"),
        license_link=base.get("license_link"),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sparsity", "nm-sparsity", "activation-sparsity", *(["onnx"] if facts.with_onnx else [])],
        model_name=facts.name,
        eval_results=results or None,
    )


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
