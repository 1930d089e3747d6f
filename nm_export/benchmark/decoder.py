"""A few layers of a large architecture with random weights: caches as overwhelmed as by the whole model.

Speed does not depend on what the weights say. The vocabulary is small, so that the output layer, which stays dense,
does not count: a whole model gains less by its share.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nm_export.benchmark.model import DEFAULT_PROMPTS, ModelBenchmark, compare_folders, describe_machine
from nm_export.benchmark.shapes import Architecture
from nm_export.benchmark.shapes import architecture as known_architecture
from nm_export.onnx.extras import require
from nm_export.sparsification import sparsify
from nm_export.tokenizer_files import save_tokenizer


def benchmark_decoder(
    architecture: str,
    *,
    layers: int = 2,
    vocabulary: int = 512,
    pattern: str = "8:16",
    precision: str = "fp32",
    block_size: int = 32,
    prompts: Sequence[int] = DEFAULT_PROMPTS,
    new_tokens: int = 24,
    repeats: int = 5,
    command: str = "",
) -> ModelBenchmark:
    """Time a decoder of `layers` layers with every linear pruned against its dense twin, in both runtimes.

    Args:
        architecture: name in `shapes.ARCHITECTURES`.
        layers: how many; two of a 7B model are 1.7 GB in float32. The export needs four times that in memory, and three
            times on disk.
        vocabulary: rows of the embedding and of the output layer.
        pattern: of all linears, by magnitude.
        precision: of the weights, of both twins: "fp32", "int8" or "int4".
        block_size: weights of neighbouring inputs that share a scale, where they are quantized.
        prompts: lengths of prompt, in tokens.
        new_tokens: tokens generated after each prompt.
        repeats: runs of each; the median counts.
        command: that called this, for the record.

    Raises:
        UserError: an unknown architecture, a pattern that does not fit, or packages are missing.
    """
    require("onnxruntime", "onnx")
    require("onnxruntime_genai", "genai")
    from nm_export.onnx.dense_graph import build_dense_twin
    from nm_export.onnx.export import export_onnx

    known = known_architecture(architecture)
    with tempfile.TemporaryDirectory(prefix="nm_export-bench-") as scratch:
        sparse = Path(scratch) / "sparse"
        sparse.mkdir()
        model = sparsify(_random_model(known, layers, vocabulary), pattern=pattern, targets=["*_proj"])
        model.config.save_pretrained(sparse)
        save_tokenizer(_word_tokenizer(vocabulary), sparse)
        export_onnx(model, sparse, tokenizer_dir=sparse, precision=precision, block_size=block_size)
        dense = build_dense_twin(model, sparse, Path(scratch) / "dense")
        del model
        rows = compare_folders(dense, sparse, vocabulary, prompts=prompts, new_tokens=new_tokens, repeats=repeats)
    depth = f"{layers} layer{'' if layers == 1 else 's'}"
    title = f"{architecture}, {depth}, vocabulary {vocabulary}, every linear {pattern}"
    named = precision if precision == "fp32" else f"{precision}, block {block_size}"
    return ModelBenchmark(title, named, rows, repeats, new_tokens, describe_machine(), command)


def _random_model(known: Architecture, layers: int, vocabulary: int) -> Any:
    import transformers

    config = getattr(transformers, known.config_class)(
        hidden_size=known.hidden,
        intermediate_size=known.intermediate,
        num_attention_heads=known.heads,
        num_key_value_heads=known.kv_heads,
        head_dim=known.head_size,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _word_tokenizer(vocabulary: int) -> Any:
    """A tokenizer of as many words: the graph builder wants one, and nobody asks it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w0", eos_token="w1", unk_token="w0")
