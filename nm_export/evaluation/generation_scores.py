"""What a model writes by itself: greedy continuations of the same prompts, beside the dense model's."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from nm_export.evaluation.estimate import Estimate, exponential, mean_estimate
from nm_export.evaluation.quality import torch_logits
from nm_export.evaluation.text_scores import BATCH_SIZE
from nm_export.progress import track

GRAM = 4
"""Tokens in a row that count as repeated."""


@dataclass(frozen=True)
class GenerationScores:
    """How a model continues prompts. Standard errors are those of the mean over prompts; None for a single one.

    Attributes:
        prompts: number of prompts.
        prompt_tokens: length of each.
        new_tokens: length of each continuation.
        repeated: share of the continuation's runs of `GRAM` tokens that stand in it before (rep-4, 1908.04319).
        dense_repeated: the same of the dense model's; None, as all that follows, without a dense model.
        shared_tokens: tokens of the continuation before it differs from the dense model's.
        perplexity: that the dense model finds in the continuations.
        dense_perplexity: that the dense model finds in its own.
    """

    prompts: int
    prompt_tokens: int
    new_tokens: int
    repeated: Estimate
    dense_repeated: Estimate | None = None
    shared_tokens: Estimate | None = None
    perplexity: Estimate | None = None
    dense_perplexity: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.to_dict() if isinstance(value, Estimate) else value for name, value in values.items()}


def evaluate_generation(
    model: Any,
    dense: Any | None,
    prompts: Tensor,
    new_tokens: int,
    *,
    batch_size: int = BATCH_SIZE,
    description: str = "Writing",
) -> GenerationScores:
    """Let a model continue prompts, and the dense model if there is one, and compare.

    Args:
        model: a transformers causal language model, or an `NMSparseORTModelForCausalLM`.
        dense: the dense model, in PyTorch, or None.
        prompts: token ids, int64 `[P, L]`, all of the same length.
        new_tokens: length of every continuation, at least `GRAM`; the end-of-sequence token is not chosen before.
        batch_size: prompts at once.
        description: label of the progress bar.
    """
    sizes = (len(prompts), prompts.shape[1], new_tokens)
    written = _continued(model, prompts, new_tokens, batch_size, description)
    repeated = mean_estimate([_repeated(row) for row in written.tolist()])
    if dense is None:
        return GenerationScores(*sizes, repeated)
    expected = _continued(dense, prompts, new_tokens, batch_size, f"{description}, dense")
    return GenerationScores(
        *sizes,
        repeated,
        dense_repeated=mean_estimate([_repeated(row) for row in expected.tolist()]),
        shared_tokens=mean_estimate((written == expected).cumprod(-1).sum(-1).tolist()),
        perplexity=_perplexity(dense, prompts, written),
        dense_perplexity=_perplexity(dense, prompts, expected),
    )


def _continued(model: Any, prompts: Tensor, new_tokens: int, batch_size: int, description: str) -> Tensor:
    """Greedy continuations, int64 `[P, new_tokens]`."""
    batches = prompts.split(batch_size)
    rows = []
    for batch in track(batches, description, total=len(batches)):
        ids = batch.to(model.device)
        # what a generation_config.json asks for besides would be measured along
        tokens = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
        rows.append(tokens[:, ids.shape[1] :].cpu())
    return torch.cat(rows)


def _repeated(tokens: Sequence[int]) -> float:
    runs = list(zip(*(tokens[first:] for first in range(GRAM)), strict=False))
    return 1 - len(set(runs)) / len(runs)


def _perplexity(dense: Any, prompts: Tensor, written: Tensor) -> Estimate:
    """Perplexity of what was written, given the prompts, to the dense model."""
    logits = torch_logits(dense)
    losses = []
    for prompt, row in zip(prompts, written, strict=True):
        predictions = logits(torch.cat([prompt, row])[None])[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        losses.append(-float(predictions.gather(-1, row[:, None]).mean(dtype=torch.float64)))
    return exponential(mean_estimate(losses))
