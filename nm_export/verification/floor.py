"""How far rounding alone leads a sparse model astray: the yardstick of end-to-end agreement.

One near-tie that flips keeps another channel, and the difference grows from layer to layer. A handful of such flips
make up most of a measured divergence, so that a single comparison says little; the floor is the worst of several.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nm_export.evaluation import Divergence, divergence, torch_logits
from nm_export.evaluation.quality import Logits

PERTURBATIONS = 3


def rounding_floor(model: Any, sequences: Any) -> Divergence:
    """Compare a sparse model with itself, rounded differently: the worst of each measure.

    The variants are eager instead of the current attention, and embeddings with another last bit, up or down by token.

    Args:
        model: an `NMSparseForCausalLM`.
        sequences: token ids, as in `divergence`.

    Returns:
        Largest KL and log-likelihood difference, smallest top-1 agreement; the perplexity is that of eager attention.
    """
    variants: dict[str, Logits] = {"eager": _eager(model)}
    variants |= {f"perturbed {seed}": _perturbed(model, seed) for seed in range(PERTURBATIONS)}
    results = divergence(torch_logits(model), variants, sequences, "Verifying, rounding floor")
    del results["reference"]
    return Divergence(
        perplexity=results["eager"].perplexity,
        kl=max(result.kl for result in results.values()),
        top1_agreement=min(result.top1_agreement for result in results.values()),
        nll_difference=max(result.nll_difference for result in results.values()),
    )


def _eager(model: Any) -> Logits:
    def logits(ids: Tensor) -> Tensor:
        with _attention(model, "eager"):
            return torch_logits(model)(ids)

    return logits


def _perturbed(model: Any, seed: int) -> Logits:
    generator = torch.Generator().manual_seed(seed)

    def change_last_bit(_: Any, __: Any, output: Tensor) -> Tensor:
        # one sign a token: equal numbers, of which quantized embeddings have many, stay equal, as in every backend
        signs = torch.randint(0, 2, (*output.shape[:-1], 1), generator=generator).to(output) * 2 - 1
        return output * (1 + torch.finfo(output.dtype).eps * signs)

    def logits(ids: Tensor) -> Tensor:
        hook = model.get_input_embeddings().register_forward_hook(change_last_bit)
        try:
            return torch_logits(model)(ids)
        finally:
            hook.remove()

    return logits


@contextmanager
def _attention(model: Any, implementation: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
