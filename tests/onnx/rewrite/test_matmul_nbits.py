"""The weights of MatMulNBits as this package reads them are those that ONNX Runtime multiplies with."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from nm_export.onnx.matmul_nbits import quantize_matmul_nbits
from nm_export.onnx.quantize import WeightFormat
from nm_export.onnx.rewrite.editor import GraphEditor
from nm_export.onnx.rewrite.matmul_nbits import matmul_nbits


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("K", [48, 64])
def test_identity_times_weight(K, bits, symmetric, tmp_path):
    weight = np.random.default_rng(0).standard_normal((K, 20)).astype(np.float32)
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, n]) for name, n in (("x", K), ("y", 20))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="/MatMul")], "g", info[:1], info[1:])
    format = WeightFormat(bits, 32, symmetric)
    with GraphEditor(graph, tmp_path / "m.onnx.data") as editor:
        editor.add_constant("w", weight)
        made = matmul_nbits(editor, editor.nodes["/MatMul"], format)
        editor.close_gaps()
    assert [node.name for node in graph.node] == [f"/MatMul_Q{bits}"]
    assert "w" not in {tensor.name for tensor in graph.initializer}
    level = next(a for a in graph.node[0].attribute if a.name == "accuracy_level")
    level.i = 1  # float32 inputs: the product with the identity is the weight
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (got,) = session.run(None, {"x": np.eye(K, dtype=np.float32)})
    np.testing.assert_allclose(got, made.dequantize(), atol=1e-6)
    np.testing.assert_array_equal(made.dequantize(), quantize_matmul_nbits(weight, format).dequantize())
    assert np.abs(got - weight).max() < (0.6 if bits == 4 else 0.04)
