"""Tiny random language models of the supported architectures, and recipes for them."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from nm_export.modeling import NMSparseForCausalLM
from nm_export.plan import make_plan
from nm_export.recipe import Recipe

VOCABULARY = 96
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**_SIZES),
    "qwen3": lambda: Qwen3Config(**_SIZES, head_dim=8),
    "gemma3": lambda: Gemma3TextConfig(**_SIZES, head_dim=8, sliding_window=16),
    "phi3": lambda: Phi3Config(**_SIZES),
}
ARCHITECTURES = tuple(CONFIGS)


def dense_model(architecture: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A dense model with weights large enough that pruning shows, and biases that are not zero."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture]()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.1)
            elif parameter.dim() == 2:
                parameter.mul_(4)
    return model


def recipe(**sparsity: Any) -> Recipe:
    """A recipe with the given sparsity section, for a model that is in memory already."""
    return Recipe(model={"source": "in-memory"}, sparsity=sparsity)


def sparse_model(architecture: str = "llama", **sparsity: Any) -> Any:
    """A sparse model with neutral parameters; without keywords, magnitude 8:16 on every linear."""
    model = dense_model(architecture)
    return NMSparseForCausalLM.from_dense(model, make_plan(model, recipe(**sparsity)).sparsity())


def token_ids(samples: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids, int64 `[samples, length]`, without special tokens."""
    return torch.randint(3, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(seed))
