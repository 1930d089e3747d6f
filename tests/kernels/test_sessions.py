"""The library inside ONNX Runtime: threads, sessions, shapes, allocation of outputs, two runtimes in one process."""

import gc
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from nm_export.ops import ops_library_path
from tests.kernels import reference
from tests.kernels.matmul_sessions import sparse_matmul_model
from tests.kernels.sessions import assert_identical, create_session, nm_topk_model, run


@pytest.mark.parametrize("attributes", [{}, {"shift_mode": 2, "variance_correction": 1}, {"shift_mode": 1}])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_threads_change_nothing(dtype, attributes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 67, 1024)).astype(dtype)
    score = np.exp(rng.standard_normal(1024)).astype(np.float32)
    shift = rng.standard_normal(1024).astype(np.float32)
    model = nm_topk_model(dtype, n=8, m=16, **attributes)
    alone = run(create_session(model, threads=1), x, score, shift)
    for threads in (2, 5):
        together = run(create_session(model, threads=threads), x, score, shift)
        for a, b in zip(alone, together, strict=True):
            assert_identical(a, b)


@pytest.mark.parametrize("attributes", [{}, {"shift_mode": 1, "variance_correction": 1}, {"shift_mode": 2}])
def test_a_token_does_not_see_its_neighbours(attributes):
    x = np.random.default_rng(1).standard_normal((4, 9, 64)).astype(np.float32)
    score, shift = np.ones(64, np.float32), np.zeros(64, np.float32)
    session = create_session(nm_topk_model(n=8, m=16, **attributes))
    whole = run(session, x, score, shift)
    for b in range(4):
        for t in range(9):
            for all_tokens, one in zip(whole, run(session, x[b : b + 1, t : t + 1], score, shift), strict=True):
                assert_identical(all_tokens[b : b + 1, t : t + 1], one)


def test_one_session_in_many_threads_and_many_sessions_at_once():
    rng = np.random.default_rng(2)
    score, shift = np.ones(256, np.float32), np.zeros(256, np.float32)
    model = nm_topk_model("float16", n=3, m=8, shift_mode=2, variance_correction=1)
    inputs = [rng.standard_normal((rng.integers(1, 200), 256)).astype(np.float16) for _ in range(24)]
    session = create_session(model, threads=2)
    expected = [run(session, x, score, shift) for x in inputs]

    def shared(i):
        return run(session, inputs[i], score, shift)

    def own(i):
        return run(create_session(model, threads=2), inputs[i], score, shift)

    with ThreadPoolExecutor(4) as pool:
        for results in (pool.map(shared, range(24)), pool.map(own, range(24))):
            for result, wanted in zip(results, expected, strict=True):
                assert_identical(result[0], wanted[0])
                assert_identical(result[1], wanted[1])


def test_sessions_come_and_go():
    x, score, shift = np.arange(8, dtype=np.float32), np.ones(8, np.float32), np.zeros(8, np.float32)
    for _ in range(20):
        session = create_session(nm_topk_model())
        assert run(session, x, score, shift)[0].tolist() == [0, 0, 2, 3, 0, 0, 6, 7]
        del session
        gc.collect()


def test_flushing_of_subnormals_by_the_host_changes_nothing():
    x = np.full((1, 8), 1e-40, np.float32) * np.arange(1, 9, dtype=np.float32)
    expected = np.where(np.arange(8) % 4 >= 2, x, np.float32(0))
    session = create_session(nm_topk_model())
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot set this on this processor")
    try:
        assert (x * np.float32(0.5)).max() == 0, "subnormals are not flushed: the test would show nothing"
        values, _ = run(session, x, np.ones(8, np.float32), np.zeros(8, np.float32))
        still_flushed = (x * np.float32(0.5)).max() == 0
    finally:
        torch.set_flush_denormal(False)
    assert_identical(values, expected)
    assert still_flushed


@pytest.mark.parametrize(
    ("shape", "inferred"),
    [
        (["batch", "sequence", 64], (["batch", "sequence", 64], ["batch", "sequence", 1])),
        ([2, 64], ([2, 64], [2, 1])),
        (["sequence", "K"], (["sequence", "K"], ["sequence", 1])),
        ([64], ([64], [1])),
    ],
)
def test_shapes_are_inferred(shape, inferred):
    session = create_session(nm_topk_model(shape=shape))
    assert tuple(output.shape for output in session.get_outputs()) == inferred


def test_axes_without_a_name_work_without_warning(capfd):
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(ops_library_path()))
    session = ort.InferenceSession(nm_topk_model(shape=[None, None, 8]), options)
    for length in (1, 3):
        x = np.random.default_rng(0).standard_normal((2, length, 8)).astype(np.float32)
        values, _ = run(session, x, np.ones(8, np.float32), np.zeros(8, np.float32))
        assert_identical(values, reference.nm_topk(x, np.ones(8, np.float32), np.zeros(8, np.float32), n=2, m=4)[0])
    assert capfd.readouterr().err == ""


def test_bfloat16_values_are_bound_without_a_cast():
    node = helper.make_node(
        "NMTopK",
        ["x", "score", "shift"],
        ["values", "token_shift"],
        domain="ai.nm_export",
        **{"n": 2, "m": 4, "shift_mode": 1, "variance_correction": 1, "phase": 0, "strided": 0},
    )
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "bfloat16",
        [
            info("x", TensorProto.BFLOAT16, [3, 16]),
            info("score", TensorProto.FLOAT, [16]),
            info("shift", TensorProto.FLOAT, [16]),
        ],
        [info("values", TensorProto.BFLOAT16, [3, 16]), info("token_shift", TensorProto.FLOAT, [3, 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.nm_export", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    session = create_session(model)

    x = np.random.default_rng(3).standard_normal((3, 16)).astype(ml_dtypes.bfloat16)
    score, shift = np.ones(16, np.float32), np.zeros(16, np.float32)
    values = np.zeros((3, 16), ml_dtypes.bfloat16)
    token_shift = np.zeros((3, 1), np.float32)
    binding = session.io_binding()
    for name, array, element_type in [
        ("x", x, TensorProto.BFLOAT16),
        ("score", score, TensorProto.FLOAT),
        ("shift", shift, TensorProto.FLOAT),
    ]:
        binding.bind_input(name, "cpu", 0, element_type, array.shape, array.ctypes.data)
    binding.bind_output("values", "cpu", 0, TensorProto.BFLOAT16, values.shape, values.ctypes.data)
    binding.bind_output("token_shift", "cpu", 0, TensorProto.FLOAT, token_shift.shape, token_shift.ctypes.data)
    session.run_with_iobinding(binding)
    expected, expected_shift = reference.nm_topk(x, score, shift, n=2, m=4, shift_mode=1, variance_correction=1)
    assert_identical(token_shift, expected_shift)
    np.testing.assert_allclose(values.astype(np.float32), expected.astype(np.float32), rtol=2**-7)


def test_onnxruntime_and_genai_share_the_library_in_one_process(tmp_path):
    """Both bring their own ONNX Runtime with its own table of functions, and load one copy of the library."""
    pytest.importorskip("onnxruntime_genai")
    (tmp_path / "model.onnx").write_bytes(nm_topk_model())
    library = shutil.copy(ops_library_path(), tmp_path)
    script = Path(__file__).with_name("genai_process.py")
    command = [sys.executable, str(script), str(tmp_path), Path(library).name]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "both opened it" in result.stdout


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (
            nm_topk_model("float32", n=8, m=16, shift_mode=2, variance_correction=1),
            {"x": (5, 64), "score": (64,), "shift": (64,)},
        ),
        (
            sparse_matmul_model(),
            {"values": (3, 64), "weight": (64, 96), "bias": (96,), "token_shift": (3, 1), "offset": (96,)},
        ),
    ],
    ids=["NMTopK", "NMSparseMatMul"],
)
def test_a_thousand_runs_in_each_of_four_threads_are_equal(model, inputs):
    rng = np.random.default_rng(4)
    fed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()}
    if "score" in fed:
        fed["score"] = np.abs(fed["score"])
    session = create_session(model, threads=2)
    expected = [output.tobytes() for output in session.run(None, fed)]

    def many(_):
        return sum([output.tobytes() for output in session.run(None, fed)] == expected for _ in range(1000))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(many, range(4))) == [1000] * 4
