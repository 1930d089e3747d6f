"""Tiny random models with heads of 16 channels, the smallest that ONNX Runtime's attention takes."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)

from nm_export.calibration import calibrate
from nm_export.modeling import NMSparseForCausalLM
from nm_export.plan import make_plan
from nm_export.recipe import SparsitySection

VOCABULARY = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}
GEMMA_LAYERS = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "phi3": Phi3Config(**SIZES),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=32, sliding_window=8, layer_types=GEMMA_LAYERS),
    "gemma": GemmaConfig(**SIZES, head_dim=32),
    "gemma2": Gemma2Config(**SIZES, head_dim=32, sliding_window=8, query_pre_attn_scalar=32),
    "granite": GraniteConfig(
        **SIZES, embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.3, attention_multiplier=0.2
    ),
    "smollm3": SmolLM3Config(**SIZES),
    # what the graph builder gets wrong, or does not read, when it is left to itself
    "biases everywhere": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "Llama 3 rope": LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    "linear rope": LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
    "Mistral window": MistralConfig(**SIZES, sliding_window=6),
    "Phi-3 window": Phi3Config(**SIZES, sliding_window=6),
    "Qwen2 window": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "Gemma 3 linear rope": Gemma3TextConfig(
        **SIZES, head_dim=32, sliding_window=8, layer_types=GEMMA_LAYERS, rope_parameters=GEMMA_ROPE
    ),
    "vocabulary as wide as the MLP": LlamaConfig(**{**SIZES, "vocab_size": SIZES["intermediate_size"]}),
}
# architectures without a graph builder
GENERIC: dict[str, PreTrainedConfig] = {
    # one packed linear for q, k and v; attention and MLP side by side; a quarter of each head is rotated; biases
    "gpt_neox": GPTNeoXConfig(**{**SIZES, "num_key_value_heads": 4}),
    # q, k, v, gate and up read one norm; biases of q, k and v; keys and values shared by two heads; embeddings tied
    "stablelm": StableLmConfig(**SIZES, use_parallel_residual=True, use_qkv_bias=True, tie_word_embeddings=True),
}
_ALL = {"output_scale": True, "output_bias": "learned", "residual_rank": 5}
# Every kind of constant that a graph can hold.
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"pattern": "8:16"},
    "weight_norm": {"pattern": "2:4", "score": "weight_norm", "variance_correction": True},
    "dynamic_mean": {"pattern": "2:4", "shift": "dynamic_mean"},
    "dynamic_median": {"pattern": "4:8", "shift": "dynamic_median", "phase": "prefill"},
    "static_scalar": {"pattern": "2:4", "shift": "static_scalar", "phase": "decode"},
    "static_channel": {"pattern": "2:4", "shift": "static_channel", "score": "weight_norm"},
    "strided": {"pattern": "4:8", "grouping": "strided", "score": "weight_norm", "shift": "static_channel"},
    "unstructured": {"pattern": "30%", "score": "weight_norm", "variance_correction": True},
    "output_scale": {"pattern": "2:4", "output_scale": True},
    "output_bias": {"pattern": "2:4", "output_bias": "learned"},
    "residual": {"pattern": "2:4", "residual_rank": 3},
    "all, dynamic": {"pattern": "4:8", "shift": "dynamic_mean", "variance_correction": True} | _ALL,
    "all, learned": {"pattern": "8:16", "shift": "learned", "score": "weight_norm"} | _ALL,
    "residual, prefill": {"pattern": "2:4", "shift": "static_scalar", "phase": "prefill", "residual_rank": 5},
    "residual, decode": {"pattern": "50%", "shift": "dynamic_median", "phase": "decode", "residual_rank": 5},
}
WEIGHTS = {"pattern": "2:4", "prune": "weights"}


def dense(name: str = "llama", config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """A dense model whose biases and norms are not what they are initialised to."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config or (CONFIGS | GENERIC)[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=0.2 if parameter.dim() == 1 else 0.0, std=0.15)
    return model


def sparse(name: str = "llama", **sparsity: Any) -> Any:
    """A calibrated sparse model; what would be learned is random."""
    model = dense(name)
    plan = make_plan(model, SparsitySection(**sparsity))
    model = NMSparseForCausalLM.from_dense(model, plan.sparsity())
    calibrate(model, tokens(samples=4, length=16, seed=1), 2)
    for module in model.nm_modules().values():
        _learn(module)
    return model.eval()


def _learn(module: Any) -> None:
    generator = torch.Generator().manual_seed(2)  # linears that share an input share its shift
    learned = {
        "nm_scale": (1.0, 0.3),
        "nm_bias": (0.0, 0.3),
        "nm_residual_in": (0.0, 0.3),
        "nm_residual_out": (0.0, 0.3),
    }
    if module.shift == "learned":
        learned = {"nm_shift": (0.1, 0.1)} | learned
    for name, (mean, std) in learned.items():
        if (buffer := getattr(module, name)) is not None:
            buffer.normal_(mean, std, generator=generator)
    module.update_offset()


def tokens(samples: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids, int64 `[samples, length]`, without special tokens."""
    return torch.randint(3, VOCABULARY - 20, (samples, length), generator=torch.Generator().manual_seed(seed))
