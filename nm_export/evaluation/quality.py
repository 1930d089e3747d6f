"""Perplexity, and how far the predictions of one model are from another's, over fixed windows of tokens."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nm_export.progress import track

Logits = Callable[[Tensor], Tensor]
"""From token ids, int64 `[1, L]`, to logits `[1, L, V]`, whatever computes them."""


@dataclass(frozen=True)
class Divergence:
    """How a model's next-token predictions differ from a reference model's, averaged over the tokens of all windows.

    Attributes:
        perplexity: exp of the mean negative log-likelihood, of the model itself.
        kl: mean KL(reference || model), nats for one token.
        top1_agreement: share of positions where both find the same token most likely.
        nll_difference: mean absolute difference of the true token's log-likelihood, nats.
    """

    perplexity: float
    kl: float
    top1_agreement: float
    nll_difference: float


def torch_logits(model: Any) -> Logits:
    """Wrap a transformers causal language model for `perplexity` and `divergence`."""

    def logits(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
        return result.cpu()

    return logits


def perplexity(logits: Logits, sequences: Tensor, description: str = "Measuring perplexity") -> float:
    """Return exp of the mean negative log-likelihood of every token but each window's first.

    Args:
        logits: the model.
        sequences: token ids, int64 `[windows, length]`; every window is a context of its own.
        description: label of the progress bar.
    """
    total = 0.0
    for row in track(sequences, description, total=len(sequences)):
        # the last position predicts a token that is not there
        predictions = logits(row.unsqueeze(0))[0, :-1].float()
        total += float(F.cross_entropy(predictions, row[1:], reduction="none").sum(dtype=torch.float64))
    return math.exp(total / (sequences.numel() - len(sequences)))


def divergence(
    reference: Logits, models: Mapping[str, Logits], sequences: Tensor, description: str = "Comparing"
) -> dict[str, Divergence]:
    """Compare models with a reference on the same windows, one window at a time.

    Args:
        reference: the model that the others are measured against; it is itself in the result, as `reference`.
        models: further models by name.
        sequences: token ids, int64 `[windows, length]`.
        description: label of the progress bar.
    """
    names = ["reference", *models]
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in names}
    for row in track(sequences, description, total=len(sequences)):
        expected = _log_probabilities(reference, row)
        expected_nll, expected_top = _nll(expected, row), expected.argmax(-1)
        for name in names:
            actual = expected if name == "reference" else _log_probabilities(models[name], row)
            nll = _nll(actual, row)
            kl = F.kl_div(actual, expected, reduction="none", log_target=True).sum(-1)
            agrees = (actual.argmax(-1) == expected_top).double()
            terms = (nll, kl, agrees, (nll - expected_nll).abs())
            sums[name] += torch.stack([term.sum(dtype=torch.float64) for term in terms])
    tokens = sequences.numel() - len(sequences)
    results = {}
    for name in names:
        nll, kl, agrees, difference = (sums[name] / tokens).tolist()
        results[name] = Divergence(math.exp(nll), max(kl, 0.0), agrees, difference)
    return results


def _log_probabilities(logits: Logits, row: Tensor) -> Tensor:
    return logits(row.unsqueeze(0))[0, :-1].float().log_softmax(-1)


def _nll(log_probabilities: Tensor, row: Tensor) -> Tensor:
    return -log_probabilities.gather(-1, row[1:].unsqueeze(-1)).squeeze(-1)
