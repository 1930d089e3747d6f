"""Perplexity, KL divergence to the dense model and equal top-1 tokens, in one pass over the same windows."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nm_export.batches import read_tokens
from nm_export.errors import UserError
from nm_export.evaluation.estimate import Estimate, exponential, mean_estimate
from nm_export.evaluation.quality import Logits
from nm_export.progress import track

BATCH_SIZE = 4
"""Windows in one forward pass."""


@dataclass(frozen=True)
class TextScores:
    """How well a model predicts a text, and how its predictions differ from the dense model's.

    Standard errors are those of the mean over windows; what is measured on both models is paired window by window.
    They are None for a single window.

    Attributes:
        windows: number of windows.
        scored_tokens: predictions that were scored: `windows * (window - 1)`.
        perplexity: exp of the mean negative log-likelihood; its error by the delta method.
        dense_perplexity: the dense model's; None, as all that follows, without a dense model.
        ratio: `perplexity / dense_perplexity`, the exp of the mean difference; paired.
        kl: mean KL(dense || model), nats for one token.
        top1_agreement: share of positions where both models find the same token most likely.
    """

    windows: int
    scored_tokens: int
    perplexity: Estimate
    dense_perplexity: Estimate | None = None
    ratio: Estimate | None = None
    kl: Estimate | None = None
    top1_agreement: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.to_dict() if isinstance(value, Estimate) else value for name, value in values.items()}


def evaluate_text(
    logits: Logits,
    dense_logits: Logits | None,
    windows: Any,
    *,
    batch_size: int = BATCH_SIZE,
    description: str = "Reading text",
) -> TextScores:
    """Score a model on windows of text, beside the dense model if there is one.

    Args:
        logits: the model, from ids int64 `[B, L]` to logits `[B, L, V]`.
        dense_logits: the dense model with the same vocabulary, or None. `RememberedLogits` makes it cheap to ask again.
        windows: token ids, int64 `[windows, L]`, L >= 2, or whatever else `nm_export.batches.read_tokens` takes, all of
            one length: standard errors are those of equal windows. Each window is a context of its own.
        batch_size: windows in one forward pass; results differ by rounding only.
        description: label of the progress bar.

    Raises:
        UserError: the two models have vocabularies of different sizes, or windows have different lengths.
    """
    tokens = read_tokens(windows, "evaluate_text", predicting=True)
    if not tokens.are_of_one_length:
        raise UserError(
            "evaluate_text was given windows of different lengths, and its standard errors are those of equal ones; "
            "cut them alike, or use perplexity and divergence."
        )
    rows: list[tuple[float, float, float, float]] = []
    batches = tokens.split(batch_size)
    for batch in track(batches, description, total=len(batches)):
        actual = logits(batch)
        expected = None if dense_logits is None else dense_logits(batch)
        if expected is not None and expected.shape[-1] != actual.shape[-1]:
            raise UserError(
                f"the model predicts {actual.shape[-1]:,} tokens and the dense model {expected.shape[-1]:,}; "
                "compare models with the same vocabulary"
            )
        # one window at a time: log-probabilities over a large vocabulary fill the memory fast
        for index, row in enumerate(batch):
            rows.append(_window(row, actual[index], None if expected is None else expected[index]))
    nll, dense_nll, kl, agreement = (list(column) for column in zip(*rows, strict=True))
    scored = tokens.predicted
    perplexity = exponential(mean_estimate(nll))
    if dense_logits is None:
        return TextScores(len(tokens), scored, perplexity)
    return TextScores(
        len(tokens),
        scored,
        perplexity,
        dense_perplexity=exponential(mean_estimate(dense_nll)),
        ratio=exponential(mean_estimate([a - b for a, b in zip(nll, dense_nll, strict=True)])),
        kl=mean_estimate(kl),
        top1_agreement=mean_estimate(agreement),
    )


def _window(row: Tensor, actual: Tensor, expected: Tensor | None) -> tuple[float, float, float, float]:
    """Means over the predicted tokens of one window: both negative log-likelihoods, KL, equal top-1."""
    # the last position predicts a token that is not there
    log_p = actual[:-1].float().log_softmax(-1)
    nll = _mean(-log_p.gather(-1, row[1:, None]))
    if expected is None:
        return nll, 0.0, 0.0, 0.0
    log_q = expected[:-1].float().log_softmax(-1)
    kl = _mean(F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1))
    agreement = _mean(log_p.argmax(-1) == log_q.argmax(-1))
    return nll, _mean(-log_q.gather(-1, row[1:, None])), kl, agreement


def _mean(values: Tensor) -> float:
    return float(values.mean(dtype=torch.float64))
