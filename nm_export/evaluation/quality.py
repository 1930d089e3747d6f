"""Perplexity, and how far the predictions of one model are from another's, over fixed windows of tokens."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nm_export.arguments import named
from nm_export.batches import check_vocabulary, read_tokens
from nm_export.errors import UserError
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
    """Wrap a causal language model, in PyTorch or ONNX Runtime, as a function from token ids to logits.

    `perplexity` and `divergence` do it by themselves.

    Raises:
        UserError: it is no such model.
    """
    if not hasattr(model, "generate"):
        raise UserError(f"torch_logits takes a causal language model, not {named(model)}.")

    def logits(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
        return result.cpu()

    return logits


def perplexity(model: Any, sequences: Any, description: str = "Measuring perplexity") -> float:
    """Return exp of the mean negative log-likelihood of every token but each sequence's first.

    Args:
        model: a causal language model in PyTorch or ONNX Runtime, or a function from ids to logits such as
            `torch_logits` gives.
        sequences: token ids, int64 `[windows, length]` or whatever else `nm_export.batches.read_tokens` takes; every
            sequence is a context of its own, and padding is not predicted.
        description: label of the progress bar.

    Raises:
        UserError: `model` is no model, or there are no tokens to predict.
    """
    logits = _as_logits(model, "perplexity")
    tokens = check_vocabulary(read_tokens(sequences, "perplexity", predicting=True), model, "perplexity")
    total = 0.0
    for row in track(tokens, description, total=len(tokens)):
        # the last position predicts a token that is not there
        predictions = logits(row.unsqueeze(0))[0, :-1].float()
        total += float(F.cross_entropy(predictions, row[1:].cpu(), reduction="none").sum(dtype=torch.float64))
    return math.exp(total / tokens.predicted)


def divergence(
    reference: Any, models: Mapping[str, Any], sequences: Any, description: str = "Comparing"
) -> dict[str, Divergence]:
    """Compare models with a reference on the same sequences, one sequence at a time.

    Args:
        reference: the model that the others are measured against, as in `perplexity`; it is itself in the result, as
            `reference`.
        models: further models by name.
        sequences: token ids, as in `perplexity`.
        description: label of the progress bar.

    Raises:
        UserError: something is no model, a model is called `reference`, or there are no tokens to predict.
    """
    if not isinstance(models, Mapping) or "reference" in models:
        raise UserError('divergence takes further models by name, {"sparse": model}, and none is called "reference".')
    asked = {"reference": _as_logits(reference, "divergence")}
    asked |= {name: _as_logits(model, "divergence") for name, model in models.items()}
    names = list(asked)
    tokens = check_vocabulary(read_tokens(sequences, "divergence", predicting=True), reference, "divergence")
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in names}
    for ids in track(tokens, description, total=len(tokens)):
        row = ids.cpu()
        expected = _log_probabilities(asked["reference"], row)
        expected_nll, expected_top = _nll(expected, row), expected.argmax(-1)
        for name in names:
            actual = expected if name == "reference" else _log_probabilities(asked[name], row)
            nll = _nll(actual, row)
            kl = F.kl_div(actual, expected, reduction="none", log_target=True).sum(-1)
            agrees = (actual.argmax(-1) == expected_top).double()
            terms = (nll, kl, agrees, (nll - expected_nll).abs())
            sums[name] += torch.stack([term.sum(dtype=torch.float64) for term in terms])
    results = {}
    for name in names:
        nll, kl, agrees, difference = (sums[name] / tokens.predicted).tolist()
        results[name] = Divergence(math.exp(nll), max(kl, 0.0), agrees, difference)
    return results


def _as_logits(model: Any, caller: str) -> Logits:
    """What a caller gives as a model, as a function; models know how to `generate`, functions do not."""
    if hasattr(model, "generate"):
        return torch_logits(model)
    if not callable(model) or isinstance(model, type):
        raise UserError(f"{caller} takes a causal language model or what torch_logits gives, not {named(model)}.")
    logits: Logits = model
    return logits


def _log_probabilities(logits: Logits, row: Tensor) -> Tensor:
    return logits(row.unsqueeze(0))[0, :-1].float().log_softmax(-1)


def _nll(log_probabilities: Tensor, row: Tensor) -> Tensor:
    return -log_probabilities.gather(-1, row[1:].unsqueeze(-1)).squeeze(-1)
