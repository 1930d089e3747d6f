"""The function body of NMSparseMatMulNBits, which runs where the library is not registered."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from nm_export.onnx.sparse_matmul_nbits_function import nm_sparse_matmul_nbits_function
from tests.kernels.nbits_reference import (
    BLOCK_SIZES,
    assert_follows_specification,
    products,
    random_inputs,
    unusual_products,
)
from tests.kernels.nbits_sessions import (
    CODE_TYPES,
    INPUTS,
    SCALE_DTYPES,
    ZERO_POINTS,
    feeds,
    random_weight,
    sparse_matmul_nbits_model,
)
from tests.kernels.sessions import DTYPES

LEADING = [(), (1,), (0,), (2,), (70,), (1, 1), (2, 3), (2, 0), (1, 2, 3)]


def with_body(model: onnx.ModelProto) -> onnx.ModelProto:
    model.functions.append(nm_sparse_matmul_nbits_function())
    model.opset_import[0].version = 22
    model.ir_version = 10
    return model


def open_body(weight, dtype="float32", options=None, **others):
    """A session of ONNX Runtime without the library."""
    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = with_body(sparse_matmul_nbits_model(weight, dtype, **others))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def multiply(weight, values, *others):
    """Y, of values' dtype, as ONNX Runtime computes the body."""
    dtype = next(name for name, (numpy_type, _) in DTYPES.items() if values.dtype == numpy_type)
    session = open_body(weight, dtype)
    return session.run(None, feeds(values, weight.codes.shape[1], *others))[0].astype(values.dtype)


@settings(max_examples=200, deadline=None)
@given(case=products(LEADING, columns=range(1, 41)))
def test_follows_the_specification(case):
    weight, inputs = case
    assert_follows_specification(multiply(weight, *inputs), weight, *inputs)


@settings(max_examples=100, deadline=None)
@given(case=unusual_products([1, 9, 70]))
def test_nan_infinite_tiny_and_huge_values(case):
    weight, inputs = case
    assert_follows_specification(multiply(weight, *inputs), weight, *inputs)


@pytest.mark.parametrize("zero_points", ZERO_POINTS)
@pytest.mark.parametrize("code_type", CODE_TYPES)
def test_infinite_values_keep_their_sign(code_type, zero_points):
    """Those of whole weights, not of codes and zero points apart."""
    rng = np.random.default_rng(0)
    weight = random_weight(rng, code_type, 40, 64, zero_points=zero_points)
    inputs = random_inputs(rng, (3,), 40, 64)
    inputs[0][1, 35] = -np.inf
    with np.errstate(invalid="ignore"):
        expected = (-np.inf * weight.dequantized()[35]).astype(np.float32)
    np.testing.assert_array_equal(multiply(weight, *inputs)[1], expected)


@pytest.mark.parametrize("K", [24, 32, 100])
@pytest.mark.parametrize("zero_points", ZERO_POINTS)
@pytest.mark.parametrize("code_type", CODE_TYPES)
def test_the_reference_evaluator_runs_the_body(code_type, zero_points, K):
    rng = np.random.default_rng(0)
    for block_size in BLOCK_SIZES:
        for scale_dtype in SCALE_DTYPES:
            weight = random_weight(rng, code_type, K, 6, block_size, zero_points, scale_dtype)
            inputs = random_inputs(rng, (2, 3), K, 6)
            evaluator = ReferenceEvaluator(with_body(sparse_matmul_nbits_model(weight)))
            assert_follows_specification(evaluator.run(None, feeds(inputs[0], 6, *inputs[1:]))[0], weight, *inputs)


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("K", [96, 100])
@pytest.mark.parametrize("code_type", CODE_TYPES)
def test_runtimes_neither_round_values_nor_widen_the_weight_once_and_for_all(code_type, K, level, tmp_path):
    """ONNX Runtime makes MatMulNBits, which rounds, of what it recognizes, and computes what is constant."""
    rng = np.random.default_rng(0)
    weight = random_weight(rng, code_type, K, 64, zero_points="symmetric", scale_dtype=np.float16)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    open_body(weight, options=options, level=level, values_shape=["batch", "tokens", K])
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    assert "MatMulNBits" not in {node.op_type for node in graph.node}
    assert "If" not in {node.op_type for node in graph.node}
    assert not any(np.prod(tensor.dims) >= K * 64 for tensor in graph.initializer if tensor.name != "weight")


@pytest.mark.parametrize("code_type", CODE_TYPES)
@pytest.mark.parametrize("scale_type", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("zero_points", [["blocks", "O"], [1]])
def test_body_is_valid_onnx(zero_points, scale_type, code_type):
    shapes = {"values": ["B", "T", "K"], "bias": ["O"], "offset": ["O"], "token_shift": ["B", "T", 1]}
    shapes |= {"weight": ["K", "O"], "scales": ["blocks", "O"], "zero_points": zero_points}
    types = dict.fromkeys(INPUTS, TensorProto.FLOAT) | {"weight": CODE_TYPES[code_type][0]}
    types |= dict.fromkeys(["scales", "zero_points"], scale_type)
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
