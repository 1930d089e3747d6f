"""Pruned products with weights of 8 and 4 bits: which constants they read, and what they refuse."""

import json

import numpy as np
import pytest
import torch

from nm_export.errors import NMExportError, UserError
from nm_export.onnx import export_onnx
from nm_export.onnx.base_graph import build_base_graph
from nm_export.onnx.insert import ROWS_KEY, insert_operators
from nm_export.onnx.pruned_inputs import pruned_inputs
from nm_export.onnx.quantize import WeightFormat, quantize_blocks
from nm_export.onnx.stored_weights import stored_weights
from tests.onnx.graphs import load
from tests.onnx.tiny import METHODS, SIZES, sparse


def quantized(model, tokenizer_dir, folder, format):
    graph = build_base_graph(model, tokenizer_dir, folder, share_embedding=False)
    insert_operators(graph, pruned_inputs(model), {}, format=format)
    return load(graph.path)


def test_scaled_weight_float_offset(tokenizer_dir, tmp_path):
    model, format = sparse("qwen2", **METHODS["all, dynamic"]), WeightFormat(8, 16)
    _, nodes, constants = quantized(model, tokenizer_dir, tmp_path, format)
    node = nodes["/model/layers.1/attn/k_proj/MatMul"]
    module = model.nm_modules()["model.layers.1.self_attn.k_proj"]
    expected = quantize_blocks((module.weight * module.nm_scale[:, None]).detach().numpy().T, format)
    assert (node.op_type, node.domain) == ("NMSparseMatMulNBits", "ai.nm_export")
    assert {a.name: a.i for a in node.attribute} == {"block_size": 16, "accuracy_level": 4}
    codes, scales, zeros, bias, offset = (constants[node.input[i]] for i in (1, 2, 3, 4, 6))
    np.testing.assert_array_equal(codes, expected.codes)
    np.testing.assert_array_equal(scales, expected.scales)
    assert scales.dtype == zeros.dtype == np.float16
    assert zeros.tolist() == [128]
    np.testing.assert_allclose(bias, (module.bias + module.nm_bias).detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(offset, (module.nm_offset * module.nm_scale).numpy(), rtol=1e-6)
    assert node.input[5] == nodes["/model/layers.1/attn/NMTopK"].output[1]
    assert json.loads(next(e.value for e in node.metadata_props if e.key == ROWS_KEY)) == [
        "model.layers.1.self_attn.k_proj",
        0,
        32,
    ]


@pytest.mark.parametrize("phase", ["both", "prefill"])
def test_float_weights_leave_the_file(phase, tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4", phase=phase)
    proto, _, constants = quantized(model, tokenizer_dir, tmp_path, WeightFormat(4, 32))
    kinds = [node.op_type for node in proto.graph.node]
    assert (kinds.count("NMTopK"), kinds.count("NMSparseMatMulNBits"), kinds.count("MatMulNBits")) == (8, 14, 1)
    assert "MatMul" not in kinds
    assert {f.name for f in proto.functions} == {"NMTopK", "NMSparseMatMulNBits"}
    assert max(c.size for c in constants.values() if c.dtype == np.float32) == 128 * 8  # angles; no weight
    assert {n: c.tolist() for n, c in constants.items() if "zero_point" in n} == {"nm_export.zero_point_8_float16": [8]}
    places = {t.name: {e.key: e.value for e in t.external_data} for t in proto.graph.initializer}
    assert not any(places.values())  # loaded
    stored = sum(c.nbytes // (2 if c.dtype.itemsize == 1 and "int4" in str(c.dtype) else 1) for c in constants.values())
    assert (tmp_path / "model.onnx.data").stat().st_size < stored + 4096 * len(constants)


def test_zero_points_by_block(tokenizer_dir, tmp_path):
    model, format = sparse(pattern="2:4"), WeightFormat(4, 32, symmetric=False)
    _, nodes, constants = quantized(model, tokenizer_dir, tmp_path, format)
    module = model.nm_modules()["model.layers.0.mlp.down_proj"]
    expected = quantize_blocks(module.weight.detach().numpy().T, format)
    node = nodes["/model/layers.0/mlp/down_proj/MatMul"]
    codes, scales, zeros = (constants[node.input[i]] for i in (1, 2, 3))
    np.testing.assert_array_equal(codes.astype(np.uint8), expected.codes)
    np.testing.assert_array_equal(scales, expected.scales)
    np.testing.assert_array_equal(zeros, expected.zero_points)
    assert zeros.shape == scales.shape == (3, 64)
    assert zeros.dtype == scales.dtype == np.float16


def test_scales_that_float16_does_not_hold(tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4")
    with torch.no_grad():
        model.nm_modules()["model.layers.0.mlp.up_proj"].weight.mul_(1e-4)
    path = export_onnx(model, tmp_path, tokenizer_dir=tokenizer_dir, precision="int4").model_path
    _, nodes, constants = load(path)
    for name, dtype in (("up", np.float32), ("gate", np.float16)):
        node = nodes[f"/model/layers.0/mlp/{name}_proj/MatMul"]
        assert constants[node.input[2]].dtype == constants[node.input[3]].dtype == dtype
    stored = next(w for w in stored_weights(path) if w.module == "model.layers.0.mlp.up_proj")
    own = model.nm_modules()[stored.module].weight.detach().numpy().T
    assert np.linalg.norm(stored.weight - own) < 0.1 * np.linalg.norm(own)


def test_an_odd_width_is_refused(tokenizer_dir, tmp_path, monkeypatch):
    model = sparse(pattern="2:4")
    module = model.nm_modules()["model.layers.0.mlp.up_proj"]
    monkeypatch.setattr(module, "out_features", 81)
    with pytest.raises(
        UserError, match=r"int4 needs an even number of outputs, and model\.layers\.0\.mlp\.up_proj has"
    ):
        export_onnx(model, tmp_path, tokenizer_dir=tokenizer_dir, precision="int4")
    with pytest.raises(UserError, match=r"onnx\.kernel topk multiplies float32 weights, not int4"):
        export_onnx(model, tmp_path, tokenizer_dir=tokenizer_dir, precision="int4", kernel="topk")
    assert not list(tmp_path.iterdir())


def test_a_weight_that_is_not_finite_is_named(tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4")
    graph = build_base_graph(model, tokenizer_dir, tmp_path, share_embedding=False)
    data = np.memmap(tmp_path / "model.onnx.data", np.float32, "r+")
    with torch.no_grad():
        first = model.nm_modules()["model.layers.0.self_attn.q_proj"].weight[:, 0].numpy()
    start = next(i for i in np.flatnonzero(data == first[0]) if np.array_equal(data[i : i + len(first)], first))
    data[start] = np.nan
    data.flush()
    with pytest.raises(NMExportError, match=r"self_attn\.q_proj cannot be quantized: .* NaN or infinity"):
        insert_operators(graph, pruned_inputs(model), {}, format=WeightFormat(4))


def test_sizes():
    assert SIZES["intermediate_size"] % 32  # the last block of down_proj is shorter
