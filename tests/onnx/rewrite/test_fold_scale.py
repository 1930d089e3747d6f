"""Output scales become part of the weights in the data file, of nobody else's."""

import numpy as np
import pytest

from nm_export.onnx.base_graph import build_base_graph
from nm_export.onnx.insert import insert_operators
from nm_export.onnx.pruned_inputs import pruned_inputs
from tests.onnx.graphs import exported, largest_difference, load
from tests.onnx.rewrite.test_dense_product import with_pruned_head
from tests.onnx.tiny import METHODS, sparse

Q, K, V = (f"model.layers.0.attn.{part}_proj.MatMul.weight" for part in "qkv")


@pytest.mark.parametrize("kernel", ["topk", "fused"])
def test_columns_are_scaled_where_they_lie(kernel, tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4", overrides=[{"modules": "*.0.self_attn.k_proj", "output_scale": True}])
    graph = build_base_graph(model, tokenizer_dir, tmp_path)
    _, _, before = load(graph.path)
    size = (tmp_path / "model.onnx.data").stat().st_size
    insert_operators(graph, pruned_inputs(model), {}, kernel=kernel)
    _, _, after = load(graph.path)
    scale = model.nm_modules()["model.layers.0.self_attn.k_proj"].nm_scale.numpy()
    np.testing.assert_array_equal(after[K], before[K] * scale)
    for name in before.keys() - {K}:
        np.testing.assert_array_equal(after[name], before[name])
    added = (tmp_path / "model.onnx.data").stat().st_size - size
    assert added < 4096  # constants, no second weight


def test_parts_of_a_packed_linear_take_their_part_of_the_scale(tokenizer_dir, tmp_path):
    model = sparse("phi3", pattern="2:4", output_scale=True)
    _, _, constants = load(exported(model, tokenizer_dir, tmp_path))
    module = model.nm_modules()["model.layers.0.self_attn.qkv_proj"]
    scaled = (module.weight * module.nm_scale[:, None]).detach().numpy()
    np.testing.assert_array_equal(np.concatenate([constants[Q].T, constants[K].T, constants[V].T]), scaled)


def test_a_weight_that_others_read_is_copied(tokenizer_dir, tmp_path):
    model = with_pruned_head(sparse("llama", **METHODS["all, learned"]))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    path = exported(model, tokenizer_dir, tmp_path)
    _, nodes, constants = load(path)
    embedding = model.lm_head.weight.detach().numpy()
    scaled = nodes["/lm_head/MatMul"].input[1]
    np.testing.assert_array_equal(constants["lm_head.MatMul.weight"].T, embedding)
    np.testing.assert_array_equal(constants[scaled].T, embedding * model.lm_head.nm_scale.numpy()[:, None])
    assert largest_difference(path, model) < 1e-5


def test_a_scale_of_ones_changes_nothing(tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4", output_scale=True)
    for module in model.nm_modules().values():
        module.nm_scale.fill_(1)
    graph = build_base_graph(model, tokenizer_dir, tmp_path)
    before = (tmp_path / "model.onnx.data").read_bytes()
    insert_operators(graph, pruned_inputs(model), {})
    assert (tmp_path / "model.onnx.data").read_bytes().startswith(before)
