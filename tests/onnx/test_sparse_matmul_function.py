"""The function body of NMSparseMatMul, which runs where the library is not registered."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from nm_export.onnx.sparse_matmul_function import nm_sparse_matmul_function
from tests.kernels.matmul_sessions import INPUTS, TYPES, feeds, multiply, sparse_matmul_model
from tests.kernels.sessions import DTYPES, create_session


def with_body(dtype: str = "float32", weight_dtype: str = "float32") -> onnx.ModelProto:
    model = onnx.load_from_string(sparse_matmul_model(dtype, weight_dtype))
    model.functions.append(nm_sparse_matmul_function())
    model.opset_import[0].version = 22
    model.ir_version = 10
    return model


def random_inputs(dtype: str, weight_dtype: str, leading: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((*leading, 48)) * (rng.random((*leading, 48)) < 0.5)
    vectors = [rng.standard_normal(shape).astype(np.float32) for shape in (21, (*leading, 1), 21)]
    weight = rng.standard_normal((48, 21)).astype(DTYPES[weight_dtype][0])
    return [values.astype(DTYPES[dtype][0]), weight, *vectors]


@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 5), (2, 0)])
@pytest.mark.parametrize(("dtype", "weight_dtype"), TYPES)
def test_body_and_kernel_agree(dtype, weight_dtype, leading):
    inputs = random_inputs(dtype, weight_dtype, leading)
    body = onnxruntime.InferenceSession(with_body(dtype, weight_dtype).SerializeToString())
    expected = multiply(create_session(sparse_matmul_model(dtype, weight_dtype)), *inputs)
    actual = multiply(body, *inputs)
    assert actual.shape == (*leading, 21)
    epsilon = float(ml_dtypes.finfo(actual.dtype).eps)
    np.testing.assert_allclose(
        actual.astype(np.float64), expected.astype(np.float64), rtol=2 * epsilon, atol=1e-4 if epsilon < 1e-6 else 1e-2
    )


def test_reference_evaluator_runs_the_body():
    inputs = random_inputs("float32", "float16", (2, 3))
    (y,) = ReferenceEvaluator(with_body("float32", "float16")).run(None, feeds(*inputs))
    values, weight, bias, token_shift, offset = (a.astype(np.float64) for a in inputs)
    np.testing.assert_allclose(y, values @ weight + token_shift * offset + bias, rtol=1e-5, atol=1e-5)


def test_body_is_valid_onnx():
    info = helper.make_tensor_value_info
    shapes = {
        "values": ["B", "T", "K"],
        "weight": ["K", "O"],
        "bias": ["O"],
        "offset": ["O"],
        "token_shift": ["B", "T", 1],
    }
    node = helper.make_node("NMSparseMatMul", INPUTS, ["y"], domain="ai.nm_export")
    graph = helper.make_graph(
        [node],
        "one",
        [info(name, TensorProto.FLOAT, shapes[name]) for name in INPUTS],
        [info("y", TensorProto.FLOAT, ["B", "T", "O"])],
    )
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("ai.nm_export", 1)]
    model = helper.make_model(graph, functions=[nm_sparse_matmul_function()], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
