"""What was dropped, computed once an input, through two thin products a linear."""

from collections import Counter

import numpy as np
import pytest

from nm_export.onnx import run_probe
from tests.onnx.graphs import exported, load
from tests.onnx.tiny import METHODS, sparse

LAYER = "/model/layers.0"


def test_what_was_dropped_is_computed_once_an_input(tokenizer_dir, tmp_path):
    model = sparse("qwen2", **METHODS["residual"])
    _, nodes, constants = load(exported(model, tokenizer_dir, tmp_path))
    layer = Counter(node.op_type for name, node in nodes.items() if name.startswith(LAYER))
    assert (layer["NMTopK"], layer["Where"], layer["Sub"]) == (4, 4, 0)
    dropped = nodes[f"{LAYER}/attn/NMTopK/dropped/Where"].output[0]
    for part in "qkv":
        path = f"{LAYER}/attn/{part}_proj"
        module = model.nm_modules()[f"model.layers.0.self_attn.{part}_proj"]
        down, up = (nodes[f"{path}/residual_{end}/MatMul"] for end in ("in", "out"))
        assert (down.input[0], up.input[0]) == (dropped, down.output[0])
        np.testing.assert_array_equal(constants[down.input[1]], module.nm_residual_in.T)
        np.testing.assert_array_equal(constants[up.input[1]], module.nm_residual_out.T)


@pytest.mark.parametrize(("method", "shift"), [("all, dynamic", 1), ("all, learned", 0)])
def test_what_was_dropped_is_shifted(method, shift, tokenizer_dir, tmp_path):
    _, nodes, _ = load(exported(sparse(**METHODS[method]), tokenizer_dir, tmp_path))
    topk, sub = nodes[f"{LAYER}/mlp/NMTopK"], nodes[f"{LAYER}/mlp/NMTopK/dropped/Sub"]
    assert list(sub.input) == [topk.input[0], topk.output[1] if shift else topk.input[2]]


def test_parts_of_a_packed_linear_share_the_first_product(tokenizer_dir, tmp_path):
    model = sparse("phi3", **METHODS["residual"])
    _, nodes, constants = load(exported(model, tokenizer_dir, tmp_path))
    products = [nodes[f"{LAYER}/attn/{part}_proj/residual_out/MatMul"] for part in "qkv"]
    assert {node.input[0] for node in products} == {nodes[f"{LAYER}/attn/q_proj/residual_in/MatMul"].output[0]}
    module = model.nm_modules()["model.layers.0.self_attn.qkv_proj"]
    parts = [constants[node.input[1]].T for node in products]
    np.testing.assert_array_equal(np.concatenate(parts), module.nm_residual_out)


def test_a_call_that_is_not_pruned_drops_nothing(tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4", phase="prefill", residual_rank=4)
    path = exported(model, tokenizer_dir, tmp_path)
    name = "model.layers.0.mlp.down_proj"
    module = model.nm_modules()[name]
    x = np.random.default_rng(0).standard_normal((2, 1, 80)).astype(np.float32)
    dense = x @ module.weight.detach().numpy().T
    kept, y = run_probe(path, {name: x}, library=False)[name]
    assert kept.all()
    np.testing.assert_allclose(y, dense, rtol=1e-5, atol=1e-5)
    _, several = run_probe(path, {name: x.reshape(1, 2, 80)}, library=False)[name]
    assert np.abs(several - dense.reshape(1, 2, -1)).max() > 0.1
