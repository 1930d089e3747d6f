"""The architectures that the shipped recipes name: their true shapes, and tiny ones with the same ratios.

Head counts and widths are those of the published config.json files; two layers stand for all of them.
"""

from typing import Any

from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

_TINY: dict[str, Any] = {
    "vocab_size": 98,
    "num_hidden_layers": 2,
    "head_dim": 16,  # the smallest that ONNX Runtime's attention takes
    "max_position_embeddings": 128,
    "bos_token_id": 96,
    "eos_token_id": 97,
    "pad_token_id": None,
}


def _sizes(hidden: int, intermediate: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


def true_config(source: str) -> PreTrainedConfig:
    """The model's own widths."""
    return {
        "sample:smollm2-135m-instruct": lambda: LlamaConfig(
            **_sizes(576, 1536, 9, 3), num_hidden_layers=2, vocab_size=49152, tie_word_embeddings=True
        ),
        "mistralai/Mistral-7B-v0.3": lambda: MistralConfig(
            **_sizes(4096, 14336, 32, 8), num_hidden_layers=2, vocab_size=32768
        ),
        "meta-llama/Llama-2-7b-chat-hf": lambda: LlamaConfig(
            **_sizes(4096, 11008, 32, 32), num_hidden_layers=2, vocab_size=32000
        ),
        "meta-llama/Llama-3.1-8B-Instruct": lambda: LlamaConfig(
            **_sizes(4096, 14336, 32, 8), num_hidden_layers=2, vocab_size=128256
        ),
        "Qwen/Qwen2.5-7B-Instruct": lambda: Qwen2Config(
            **_sizes(3584, 18944, 28, 4), num_hidden_layers=2, vocab_size=152064
        ),
        "models/gemma-3-4b-it-text": lambda: Gemma3TextConfig(
            **_sizes(2560, 10240, 8, 4), head_dim=256, num_hidden_layers=2, vocab_size=262208
        ),
    }[source]()


def tiny_config(source: str) -> PreTrainedConfig:
    """The ratios of the widths and of the heads, in a model that runs in a moment."""
    return {
        "sample:smollm2-135m-instruct": lambda: LlamaConfig(**_sizes(96, 256, 6, 2), **_TINY, tie_word_embeddings=True),
        "mistralai/Mistral-7B-v0.3": lambda: MistralConfig(**_sizes(64, 224, 4, 1), **_TINY, sliding_window=None),
        "meta-llama/Llama-2-7b-chat-hf": lambda: LlamaConfig(**_sizes(128, 352, 8, 8), **_TINY),
        "meta-llama/Llama-3.1-8B-Instruct": lambda: LlamaConfig(**_sizes(64, 224, 4, 1), **_TINY),
        "Qwen/Qwen2.5-7B-Instruct": lambda: Qwen2Config(**_sizes(112, 592, 7, 1), **_TINY),
        "models/gemma-3-4b-it-text": lambda: Gemma3TextConfig(
            **_sizes(64, 256, 4, 2), **_TINY, sliding_window=32, layer_types=["sliding_attention", "full_attention"]
        ),
    }[source]()
