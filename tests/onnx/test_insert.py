"""NMTopK in front of the right products, once an input, with the right constants."""

import json

import onnx
import pytest

from nm_export.errors import NMExportError
from nm_export.onnx.base_graph import build_base_graph
from nm_export.onnx.checking import check_graph
from nm_export.onnx.insert import MODULES_KEY, insert_operators
from nm_export.onnx.pruned_inputs import pruned_inputs
from tests.onnx.graphs import exported, largest_difference, load
from tests.onnx.tiny import METHODS, sparse


@pytest.mark.parametrize("kernel", ["topk", "fused"])
@pytest.mark.parametrize(
    "method", ["weight_norm", "all, dynamic", "all, learned", "residual, prefill", "residual, decode"]
)
@pytest.mark.parametrize("name", ["llama", "biases everywhere", "qwen2", "qwen3", "phi3", "gemma3", "mistral"])
def test_graph_computes_what_torch_computes(name, method, kernel, tokenizer_dir, tmp_path):
    model = sparse(name, **METHODS[method])
    path = exported(model, tokenizer_dir, tmp_path, kernel=kernel)
    assert largest_difference(path, model) < 1e-5


def test_small_layers_that_prune_prompts_only_keep_the_dense_product(tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4", overrides=[{"modules": "*.down_proj", "phase": "prefill"}])
    _, nodes, _ = load(exported(model, tokenizer_dir, tmp_path, kernel="auto"))
    kinds = {name: node.op_type for name, node in nodes.items() if name.endswith("proj/MatMul")}
    assert {kind for name, kind in kinds.items() if "down_proj" in name} == {"MatMul"}
    assert {kind for name, kind in kinds.items() if "down_proj" not in name} == {"NMSparseMatMul"}


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


def test_ones_and_zeros_are_stored_once_a_width(tokenizer_dir, tmp_path):
    model, _, constants = load(exported(sparse(pattern="2:4"), tokenizer_dir, tmp_path))
    assert {name for name in constants if "nm_export" in name} == {"nm_export.0_64", "nm_export.0_80"} | {
        "nm_export.1_64",
        "nm_export.1_80",
    }
    assert {p.key: p.value for p in model.metadata_props}["recipe_sha256"] == "abc"


def test_weights_are_not_rewritten(tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4", shift="static_channel")
    graph = build_base_graph(model, tokenizer_dir, tmp_path)
    before = (tmp_path / "model.onnx.data").read_bytes()
    insert_operators(graph, pruned_inputs(model), {}, kernel="topk")
    assert (tmp_path / "model.onnx.data").read_bytes().startswith(before)


def test_an_invalid_file_is_refused(tokenizer_dir, tmp_path):
    path = exported(sparse(pattern="2:4"), tokenizer_dir, tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.node[-1].input[0] = "nowhere"
    onnx.save(model, path)
    with pytest.raises(NMExportError, match="is not a valid ONNX file"):
        check_graph(path)
