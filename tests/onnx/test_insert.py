"""NMTopK in front of the right products, once an input, with the right constants."""

import json

import numpy as np
import onnx
import pytest
import torch

from nm_export.errors import NMExportError
from nm_export.onnx.base_graph import build_base_graph
from nm_export.onnx.checking import check_graph
from nm_export.onnx.insert import MODULES_KEY, insert_operators, pruned_inputs
from nm_export.onnx.session import create_session, empty_cache
from tests.onnx.tiny import METHODS, sparse, tokens


def exported(model, tokenizer_dir, folder, *, kernel="topk"):
    graph = build_base_graph(model, tokenizer_dir, folder)
    insert_operators(graph, pruned_inputs(model), {"recipe_sha256": "abc"}, kernel=kernel)
    check_graph(graph.path)
    return graph.path


def load(path):
    model = onnx.load(path)
    nodes = {node.name: node for node in model.graph.node}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return model, nodes, constants


def largest_difference(path, model, **session):
    """Between graph and torch, over a prompt and one more token, as a share of the largest logit."""
    opened = create_session(path, library=False, **session)
    ids, cache = tokens(), empty_cache(opened, 2)
    with torch.no_grad():
        prompt = model(ids, use_cache=True)
        step = model(ids[:, :1], past_key_values=prompt.past_key_values)
    feed = {"input_ids": ids.numpy(), "attention_mask": np.ones((2, 12), np.int64)}
    logits, *present = opened.run(None, feed | cache)
    feed = {"input_ids": ids[:, :1].numpy(), "attention_mask": np.ones((2, 13), np.int64)}
    more, *_ = opened.run(None, feed | dict(zip(cache, present, strict=True)))
    expected = torch.cat([prompt.logits, step.logits], 1).numpy()
    return np.abs(np.concatenate([logits, more], 1) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("kernel", ["topk", "fused"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "biases everywhere", "qwen2", "qwen3", "phi3", "gemma3", "mistral"])
def test_graph_computes_what_torch_computes(name, method, kernel, tokenizer_dir, tmp_path):
    model = sparse(name, **METHODS[method])
    path = exported(model, tokenizer_dir, tmp_path, kernel=kernel)
    assert largest_difference(path, model) < 1e-5


def test_layers_that_are_dense_in_one_phase_keep_the_dense_product(tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4", overrides=[{"modules": "*.down_proj", "phase": "decode"}])
    _, nodes, _ = load(exported(model, tokenizer_dir, tmp_path, kernel="auto"))
    kinds = {name: node.op_type for name, node in nodes.items() if name.endswith("proj/MatMul")}
    assert {kind for name, kind in kinds.items() if "down_proj" in name} == {"MatMul"}
    assert {kind for name, kind in kinds.items() if "down_proj" not in name} == {"NMSparseMatMul"}


def test_a_sparse_product_takes_bias_and_offset_in(tokenizer_dir, tmp_path):
    model = sparse("biases everywhere", **METHODS["static_channel"])
    _, nodes, constants = load(exported(model, tokenizer_dir, tmp_path, kernel="fused"))
    name = "model.layers.1.self_attn.k_proj"
    product = next(node for node in nodes.values() if node.op_type == "NMSparseMatMul" and "1/attn/k_proj" in node.name)
    module = model.nm_modules()[name]
    expected = (module.bias + module.nm_offset).detach().numpy()
    np.testing.assert_allclose(constants[product.input[2]], expected, atol=1e-6)
    assert not constants[product.input[4]].any()
    assert not any("layers.1" in other and other.endswith("k_proj/Add") for other in nodes)
    assert all(reader != "MatMul" for reader in {n.op_type for n in nodes.values() if "layers" in n.name})


def test_an_input_is_pruned_once_for_all_that_read_it(tokenizer_dir, tmp_path):
    _, nodes, _ = load(exported(sparse(pattern="2:4"), tokenizer_dir, tmp_path))
    prunes = {name: node for name, node in nodes.items() if node.op_type == "NMTopK"}
    layer = {name for name in prunes if name.startswith("/model/layers.0/")}
    prefix = "/model/layers.0"
    assert layer == {
        f"{prefix}/attn/NMTopK",
        f"{prefix}/attn/o_proj/NMTopK",
        f"{prefix}/mlp/NMTopK",
        f"{prefix}/mlp/down_proj/NMTopK",
    }
    for part in "qkv":
        assert nodes[f"{prefix}/attn/{part}_proj/MatMul"].input[0] == prunes[f"{prefix}/attn/NMTopK"].output[0]
    assert nodes["/lm_head/MatMul"].input[0] not in {node.output[0] for node in prunes.values()}
    recorded = json.loads(next(p.value for p in prunes[f"{prefix}/mlp/NMTopK"].metadata_props if p.key == MODULES_KEY))
    assert list(recorded) == ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]


def test_parts_of_one_input_can_differ(tokenizer_dir, tmp_path):
    overrides = [
        {"modules": ["*.q_proj"], "dense": True},
        {"modules": ["*.v_proj"], "pattern": "1:4", "shift": "dynamic_mean"},
    ]
    model = sparse("qwen2", pattern="2:4", overrides=overrides)
    path = exported(model, tokenizer_dir, tmp_path)
    _, nodes, _ = load(path)
    q, k, v = (nodes[f"/model/layers.0/attn/{part}_proj/MatMul"].input[0] for part in "qkv")
    assert q == nodes["/model/layers.0/attn/k_proj/NMTopK"].input[0]
    assert (k, v) == tuple(nodes[f"/model/layers.0/attn/{part}_proj/NMTopK"].output[0] for part in "kv")
    assert largest_difference(path, model) < 1e-5


def test_offsets_merge_with_biases(tokenizer_dir, tmp_path):
    model = sparse("qwen2", pattern="2:4", shift="static_channel")
    _, nodes, constants = load(exported(model, tokenizer_dir, tmp_path))
    linear = model.nm_modules()["model.layers.0.self_attn.q_proj"]
    merged = constants[nodes["/model/layers.0/attn/q_proj/Add"].input[1]]
    np.testing.assert_allclose(merged, (linear.bias + linear.nm_offset).detach().numpy(), rtol=1e-6)
    assert "/model/layers.0/attn/q_proj/offset/Add" not in nodes
    assert "model.layers.0.attn.q_proj.Add.bias" not in constants
    down = model.nm_modules()["model.layers.0.mlp.down_proj"]
    added = constants[nodes["/model/layers.0/mlp/down_proj/offset/Add"].input[1]]
    np.testing.assert_array_equal(added, down.nm_offset.numpy())


def test_ones_and_zeros_are_stored_once_a_width(tokenizer_dir, tmp_path):
    model, _, constants = load(exported(sparse(pattern="2:4"), tokenizer_dir, tmp_path))
    added = {name for name in constants if "score" in name or "shift" in name}
    assert added == {f"nm_export.{kind}_{K}" for kind in ("score_1", "shift_0") for K in (64, 80)}
    assert {p.key: p.value for p in model.metadata_props}["recipe_sha256"] == "abc"


def test_a_pruned_head_keeps_the_name_of_the_output(tokenizer_dir, tmp_path):
    options = {"pattern": "2:4", "shift": "static_scalar", "score": "weight_norm"}
    model = sparse("mistral", **options)
    scheme = {**model.config.sparsity["schemes"][0], "modules": ["lm_head"]}
    model.config.sparsity["schemes"].append(scheme)
    head = type(model.nm_modules()["model.layers.0.mlp.down_proj"])(model.lm_head, scheme, "lm_head")
    head.nm_shift.fill_(0.1)
    head.update_offset()
    model.lm_head = head
    assert largest_difference(exported(model, tokenizer_dir, tmp_path), model) < 1e-5


def test_weights_are_not_rewritten(tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4", shift="static_channel")
    graph = build_base_graph(model, tokenizer_dir, tmp_path)
    before = (tmp_path / "model.onnx.data").read_bytes()
    insert_operators(graph, pruned_inputs(model), {}, kernel="topk")
    assert (tmp_path / "model.onnx.data").read_bytes().startswith(before)


def test_a_group_that_disagrees_is_named():
    model = sparse(pattern="2:4", score="weight_norm")
    model.nm_modules()["model.layers.0.self_attn.k_proj"].nm_score[0] += 1
    with pytest.raises(NMExportError, match=r"layers\.0\.self_attn\.k_proj shares its input with .*q_proj"):
        pruned_inputs(model)


def test_an_invalid_file_is_refused(tokenizer_dir, tmp_path):
    path = exported(sparse(pattern="2:4"), tokenizer_dir, tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.node[-1].input[0] = "nowhere"
    onnx.save(model, path)
    with pytest.raises(NMExportError, match="is not a valid ONNX file"):
        check_graph(path)
