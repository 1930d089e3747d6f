"""The function body of NMSparseMatMulNBits, which runs where the library is not registered."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from nm_export.onnx.sparse_matmul_nbits_function import nm_sparse_matmul_nbits_function
from tests.kernels.nbits_sessions import CODE_TYPES, INPUTS, feeds, random_weight, sparse_matmul_nbits_model
from tests.kernels.sessions import DTYPES


def with_body(model: onnx.ModelProto) -> onnx.ModelProto:
    model.functions.append(nm_sparse_matmul_nbits_function())
    model.opset_import[0].version = 22
    model.ir_version = 10
    return model


def case(code_type: str, dtype: str, leading: tuple[int, ...], O: int, block_size: int):  # noqa: E741
    """A quantized weight, and values, bias, token_shift and offset."""
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((*leading, 24)) * (rng.random((*leading, 24)) < 0.5)).astype(DTYPES[dtype][0])
    vectors = [rng.standard_normal(shape).astype(np.float32) for shape in (O, (*leading, 1), O)]
    return random_weight(rng, code_type, 24, O, block_size), values, *vectors


def assert_near(y, weight, values, bias, token_shift, offset):
    w, v, e = weight.dequantized(), values.astype(np.float64), token_shift.astype(np.float64)
    magnitude = np.abs(v) @ np.abs(w) + np.abs(e * offset) + np.abs(bias)
    bound = 1e-5 * magnitude + float(ml_dtypes.finfo(values.dtype).eps) * np.abs(v @ w + e * offset + bias)
    assert y.shape == magnitude.shape
    assert (np.abs(y.astype(np.float64) - (v @ w + e * offset + bias)) <= bound).all()


@pytest.mark.parametrize(("O", "block_size"), [(64, 32), (40, 32), (6, 16), (66, 16), (2, 256)])
@pytest.mark.parametrize("code_type", CODE_TYPES)
def test_runtimes_without_the_library_run_the_body(code_type, O, block_size):  # noqa: E741
    weight, values, *others = case(code_type, "float32", (2, 3), O, block_size)
    model = with_body(sparse_matmul_nbits_model(weight))
    inputs = feeds(values, O, *others)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for runtime in (session, ReferenceEvaluator(model)):
        assert_near(runtime.run(None, inputs)[0], weight, values, *others)


@pytest.mark.parametrize("leading", [(), (1,), (2, 5), (2, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_body_takes_every_type_of_values(dtype, leading):
    weight, values, *others = case("int4", dtype, leading, 40, 32)
    model = with_body(sparse_matmul_nbits_model(weight, dtype))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert_near(session.run(None, feeds(values, 40, *others))[0], weight, values, *others)


@pytest.mark.parametrize("code_type", CODE_TYPES)
def test_body_is_valid_onnx(code_type):
    shapes = {"values": ["B", "T", "K"], "bias": ["O"], "offset": ["O"], "token_shift": ["B", "T", 1]}
    shapes |= {"weight": ["K", "O"], "scales": ["K", "blocks"], "zero_points": ["K", "blocks"]}
    types = dict.fromkeys(INPUTS, TensorProto.FLOAT) | dict.fromkeys(
        ["weight", "zero_points"], CODE_TYPES[code_type][0]
    )
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("NMSparseMatMulNBits", INPUTS, ["y"], domain="ai.nm_export", block_size=32)],
        "one",
        [info(name, types[name], shapes[name]) for name in INPUTS],
        [info("y", TensorProto.FLOAT, ["B", "T", "O"])],
    )
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("ai.nm_export", 1)]
    functions = [nm_sparse_matmul_nbits_function()]
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
