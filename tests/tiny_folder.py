"""A tiny model with a tokenizer as a Hugging Face folder, and recipes that export it in seconds."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from nm_export.recipe import Recipe

# Heads of 16 channels are the smallest that ONNX Runtime's attention takes; 48 divides by 3, 4, 8 and 16.
SIZES: dict[str, Any] = {
    "vocab_size": 98,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "bos_token_id": 96,
    "eos_token_id": 97,
    "pad_token_id": None,
}


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character of ASCII, other characters vanish; 96 begins and 97 ends a text."""
    characters = [*map(chr, range(ord("!"), ord("~") + 1)), "Ġ", "Ċ"]  # how ByteLevel writes space and line feed
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(characters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def write_tiny_folder(folder: Path, config: PreTrainedConfig | None = None) -> Path:
    """Write a model with random weights, large enough that pruning shows, and its tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config or LlamaConfig(**SIZES, head_dim=16)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def tiny_recipe(source: Path, **sections: Any) -> Recipe:
    """A recipe for a tiny folder: a few short sequences; `sections` are merged over it, section by section."""
    values: dict[str, dict[str, Any]] = {
        "model": {"source": str(source)},
        "calibration": {"num_samples": 6, "sequence_length": 32, "batch_size": 2},
        "evaluation": {"num_samples": 4, "sequence_length": 32},
        "verify": {"num_tokens": 64},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Recipe.from_dict(values)
