"""Whether a model predicts each token from the tokens before it, and from nothing else."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig

from nm_export.errors import UserError

_TOKENS = 8
_ENCODERS = frozenset(
    (
        *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
        *("reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta"),
        *("xlm-roberta-xl", "xmod"),
    )
)
"""Model types whose attention is causal where `is_decoder` is true, and looks both ways elsewhere."""
_BOTH_WAYS = {"use_bidirectional_attention": (True, "all"), "prefix_lm": (True,), "is_causal": (False,)}
"""Keys of configurations, and the values by which a text attends to later tokens."""


def check_causal_config(config: PreTrainedConfig, where: str) -> None:
    """Raise UserError for a model whose configuration says that its tokens see later ones; `where` names the model."""
    if config.model_type in _ENCODERS and not getattr(config, "is_decoder", False):
        raise UserError(
            f"{where} is an encoder ({config.model_type}, is_decoder is false): each of its tokens sees the whole "
            "text, so that it cannot continue one; give a decoder-only model"
        )
    for key, values in _BOTH_WAYS.items():
        value = getattr(config, key, None)
        if value is not None and value in values:
            raise UserError(f"{where} lets tokens see later ones ({key} is {value}); give a decoder-only model")


def check_causal(model: Any, where: str) -> None:
    """Raise UserError if another last token changes what a model predicts before it.

    Two rows of eight tokens are computed. Models without numbers (torch's FakeTensorMode, the meta device) pass.

    Args:
        model: a causal language model; pruning is switched off meanwhile.
        where: it in a few words, for messages.
    """
    embedding = model.get_input_embeddings().weight
    if embedding.is_meta or isinstance(embedding, torch._subclasses.FakeTensor):
        return
    vocabulary = embedding.shape[0]
    ids = torch.arange(1, 1 + _TOKENS).mul(7919).remainder(vocabulary).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % vocabulary
    dense = getattr(model, "dense", contextlib.nullcontext)
    with _without_chance(model), torch.inference_mode(), dense():
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits.float()
    before, last = ((logits[0] - logits[1])[part].abs().max() for part in (slice(-1), slice(-1, None)))
    # rows of a batch are not rounded alike, a mixture of experts even less so
    if before > (1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1) * last:
        raise UserError(
            f"{where} predicts tokens from later ones: another last token changes its first logits by "
            f"{float(before):.2g}, and its last ones by {float(last):.2g}; give a decoder-only model"
        )


@contextlib.contextmanager
def _without_chance(model: Any) -> Iterator[None]:
    """Within the block, a model that is being trained drops nothing out."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
