"""The function body of NMTopK, in onnx.reference and in ONNX Runtime without the library, against the specification."""

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from nm_export.onnx.functions import nm_topk_function
from tests.kernels import reference
from tests.kernels.cases import CONTENTS, assert_follows_specification, cases
from tests.kernels.sessions import DEFAULTS, DTYPES, nm_topk_model, run


def with_body(model: bytes) -> onnx.ModelProto:
    """A model of one NMTopK, extended by the operator's body; the library is not registered anywhere in this module."""
    made = onnx.load_from_string(model)
    made.functions.append(nm_topk_function())
    made.opset_import[0].version = 22
    made.ir_version = 10
    return made


@functools.cache
def session(dtype: str, **attributes: int) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(with_body(nm_topk_model(dtype, **attributes)).SerializeToString())


def assert_agrees(actual, x, score, shift, attributes):
    """As the kernels' tests compare, but for the sign of a zero: ONNX Runtime's Where turns -0 into +0."""
    values, token_shift = actual
    expected, _ = reference.nm_topk(x, score, shift, **attributes, token_shift=token_shift)
    assert values.shape == expected.shape
    both_zero = (values == 0) & (expected == 0)
    assert_follows_specification((np.where(both_zero, expected, values), token_shift), x, score, shift, attributes)


def dtype_name(x: np.ndarray) -> str:
    return next(name for name, (numpy_type, _) in DTYPES.items() if x.dtype == numpy_type)


@given(case=cases())
@settings(max_examples=1000, deadline=None)
def test_onnx_runtime_follows_the_specification(case):
    x, score, shift, attributes = case
    actual = run(session(dtype_name(x), **attributes), x, score, shift)
    assert_agrees(actual, x, score, shift, attributes)


@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_onnx_reference_follows_the_specification(case):
    x, score, shift, attributes = case
    evaluator = ReferenceEvaluator(with_body(nm_topk_model(dtype_name(x), **attributes)))
    with np.errstate(all="ignore"):
        actual = run(evaluator, x, score, shift)
    assert_agrees(actual, x, score, shift, attributes)


@pytest.mark.parametrize("evaluator", ["onnxruntime", "onnx.reference"])
@pytest.mark.parametrize("share", [0.002, 0.3, 0.5, 0.99, 1])
@pytest.mark.parametrize("content", CONTENTS)
def test_a_group_can_be_the_whole_token(content, share, evaluator):
    """Unstructured patterns: ties, NaN and infinity among many channels."""
    rng = np.random.default_rng(0)
    K = 600
    attributes = DEFAULTS | {"n": max(1, round(share * K)), "m": K}
    with np.errstate(all="ignore"):
        x = content(rng, (2, 2, K)).astype(np.float32)
        score, shift = np.exp(rng.standard_normal(K)).astype(np.float32), np.zeros(K, np.float32)
        made = with_body(nm_topk_model(**attributes))
        runtime = session("float32", **attributes) if evaluator == "onnxruntime" else ReferenceEvaluator(made)
        for scored in (np.ones(K, np.float32), score):
            assert_agrees(run(runtime, x, scored, shift), x, scored, shift, attributes)


@pytest.mark.parametrize("optimized", [True, False])
def test_body_runs_with_and_without_optimization(optimized):
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_aot_function_inlining", "1")
    attributes = {"n": 2, "m": 4, "shift_mode": 2, "variance_correction": 1, "phase": 1}
    model = with_body(nm_topk_model(**attributes)).SerializeToString()
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    score, shift = np.ones(16, np.float32), np.zeros(16, np.float32)
    actual = run(onnxruntime.InferenceSession(model, options), x, score, shift)
    assert_agrees(actual, x, score, shift, attributes)


def test_body_is_valid_onnx():
    node = helper.make_node(
        "NMTopK", ["x", "score", "shift"], ["values", "token_shift"], domain="ai.nm_export", **DEFAULTS
    )
    vector = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["K"]) for name in ("score", "shift")]
    x, values = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "T", "K"]) for name in ("x", "values"))
    token_shift = helper.make_tensor_value_info("token_shift", TensorProto.FLOAT, ["B", "T", 1])
    made = helper.make_model(
        helper.make_graph([node], "one", [x, *vector], [values, token_shift]),
        functions=[nm_topk_function()],
        opset_imports=[helper.make_opsetid("", 22), helper.make_opsetid("ai.nm_export", 1)],
        ir_version=10,
    )
    onnx.checker.check_model(made, full_check=True)
