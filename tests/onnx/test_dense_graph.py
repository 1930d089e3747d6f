"""Dense graphs at 8 and 4 bits are those of onnxruntime-genai's own builder."""

import json

import numpy as np
import onnx
import pytest
from onnxruntime_genai.models.builder import create_model, parse_extra_options
from transformers import LlamaConfig

from nm_export.errors import UserError
from nm_export.onnx.dense_graph import build_dense_graph
from tests.onnx.tiny import CONFIGS, SIZES, dense

NARROW = LlamaConfig(**{**SIZES, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1})
NARROW.tie_word_embeddings = True


def node_facts(graph):
    """What a node computes, by name; names of values between nodes are left out."""
    constants = {t.name for t in graph.initializer}
    return {
        node.name: (
            node.op_type,
            [name for name in node.input if name in constants],
            sorted((a.name, str(onnx.helper.get_attribute_value(a))) for a in node.attribute if a.name != "value"),
        )
        for node in graph.node
    }


@pytest.mark.parametrize(
    ("config", "precision", "symmetric", "block_size"),
    [
        (CONFIGS["llama"], "int4", True, 32),
        (NARROW, "int4", True, 32),  # 48 channels are one block and a half
        (CONFIGS["llama"], "int8", True, 32),
        (CONFIGS["qwen2"], "int4", False, 16),
        (CONFIGS["qwen3"], "int8", False, 64),
    ],
    ids=["tied", "tied, half a block", "tied, 8 bits", "zero points", "8 bits, zero points"],
)
def test_equals_the_builder_s_own(config, precision, symmetric, block_size, tokenizer_dir, tmp_path):
    from transformers import AutoTokenizer

    model = dense(config=config)
    source, plain, made = (tmp_path / name for name in ("source", "plain", "made"))
    model.save_pretrained(source)
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(source)
    settings = ["fuse_qkv=false", f"is_symmetric={symmetric}".lower(), f"block_size={block_size}"]
    place = (None, str(source), str(plain), precision, "cpu", str(tmp_path / "cache"))
    create_model(*place, **parse_extra_options(*place, settings))
    made.mkdir()
    build_dense_graph(model, source, made, precision=precision, symmetric=symmetric, block_size=block_size)

    expected, got = (onnx.load(folder / "model.onnx").graph for folder in (plain, made))
    assert node_facts(got) == node_facts(expected)
    ours, theirs = ({t.name: t for t in graph.initializer} for graph in (got, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        a, b = (onnx.numpy_helper.to_array(t) for t in (tensor, ours[name]))
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    first, second = (json.loads((folder / "genai_config.json").read_text())["model"] for folder in (plain, made))
    assert first["decoder"] == second["decoder"]


def test_another_precision_is_refused(tokenizer_dir, tmp_path):
    with pytest.raises(UserError, match=r"onnx\.precision 'int2' is not supported: .* writes fp32, int8 or int4"):
        build_dense_graph(dense(), tokenizer_dir, tmp_path, precision="int2")
    with pytest.raises(UserError, match=r"onnx\.block_size 48 is not supported"):
        build_dense_graph(dense(), tokenizer_dir, tmp_path, precision="int4", block_size=48)
