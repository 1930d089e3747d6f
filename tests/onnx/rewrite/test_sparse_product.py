"""Product, bias and offset in one node."""

import numpy as np

from tests.onnx.graphs import exported, load
from tests.onnx.tiny import METHODS, sparse


def test_bias_and_static_offset_are_one_input(tokenizer_dir, tmp_path):
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


def test_everything_is_one_bias_and_one_offset(tokenizer_dir, tmp_path):
    model = sparse("qwen2", **METHODS["all, dynamic"])
    _, nodes, constants = load(exported(model, tokenizer_dir, tmp_path, kernel="fused"))
    product = nodes["/model/layers.1/attn/k_proj/MatMul"]
    module = model.nm_modules()["model.layers.1.self_attn.k_proj"]
    bias, offset = (module.bias + module.nm_bias).detach(), module.nm_offset * module.nm_scale
    np.testing.assert_allclose(constants[product.input[2]], bias.numpy(), rtol=1e-6)
    np.testing.assert_allclose(constants[product.input[4]], offset.numpy(), rtol=1e-6)
    assert product.input[3] == nodes["/model/layers.1/attn/NMTopK"].output[1]
