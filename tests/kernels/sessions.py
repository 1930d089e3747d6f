"""One-node models for ONNX Runtime and what is fed to them."""

import functools
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from nm_export.ops import register

FEWER_EXAMPLES = int(os.environ.get("NM_EXPORT_FEWER_EXAMPLES", "1"))
"""Random tests try one of so many of their examples: sanitizers make each several times as slow."""


def examples(count: int) -> int:
    """How many examples a random test tries."""
    return max(5, count // FEWER_EXAMPLES)


DTYPES = {
    "float32": (np.float32, TensorProto.FLOAT),
    "float16": (np.float16, TensorProto.FLOAT16),
    "bfloat16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
}
DEFAULTS = {"n": 2, "m": 4, "shift_mode": 0, "variance_correction": 0, "phase": 0, "strided": 0}


def nm_topk_model(dtype: str = "float32", shape: list | None = None, name: str = "node", **attributes: int) -> bytes:
    """A model of one NMTopK. bfloat16, which NumPy lacks, enters and leaves as float32 through Casts."""
    attributes = {k: v for k, v in (DEFAULTS | attributes).items() if v is not None}
    _, element_type = DTYPES[dtype]
    node = helper.make_node(
        "NMTopK", ["x", "score", "shift"], ["values", "token_shift"], name=name, domain="ai.nm_export", **attributes
    )
    nodes, outside = [node], element_type
    if dtype == "bfloat16":
        outside = TensorProto.FLOAT
        node.input[0], node.output[0] = "narrow_x", "narrow_values"
        nodes = [
            helper.make_node("Cast", ["x"], ["narrow_x"], to=element_type),
            node,
            helper.make_node("Cast", ["narrow_values"], ["values"], to=outside),
        ]
    graph = helper.make_graph(
        nodes,
        "one_node",
        [
            helper.make_tensor_value_info("x", outside, shape),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("shift", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("values", outside, None),
            helper.make_tensor_value_info("token_shift", TensorProto.FLOAT, None),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.nm_export", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Sessions that are created inside use this instruction set; "" leaves the choice to the library."""
    before = os.environ.get("NM_EXPORT_ISA")
    os.environ["NM_EXPORT_ISA"] = name
    try:
        yield
    finally:
        del os.environ["NM_EXPORT_ISA"]
        if before is not None:
            os.environ["NM_EXPORT_ISA"] = before


def create_session(model: bytes, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors that tests provoke are seen as exceptions
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    register(options)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


_IS_AARCH64 = platform.machine().lower() in ("aarch64", "arm64")
INSTRUCTION_SETS = ("portable", "neon") if _IS_AARCH64 else ("portable", "avx2", "avx512", "avx512vnni")
"""Those of this kind of processor."""


@functools.cache
def supported_instruction_sets() -> tuple[str, ...]:
    """Those of INSTRUCTION_SETS that this machine can run."""
    supported = []
    for name in INSTRUCTION_SETS:
        with instruction_set(name):
            try:
                create_session(nm_topk_model())
            except Exception as error:
                if "does not support" not in str(error) and "must be portable" not in str(error):
                    raise
                continue
        supported.append(name)
    return tuple(supported)


def run(session: ort.InferenceSession, x: np.ndarray, score: np.ndarray, shift: np.ndarray) -> list[np.ndarray]:
    """Values, of x's dtype, and token_shift."""
    fed = x.astype(np.float32) if x.dtype == ml_dtypes.bfloat16 else x
    values, token_shift = session.run(None, {"x": fed, "score": score, "shift": shift})
    return [values.astype(x.dtype), token_shift]


def assert_identical(actual: np.ndarray, expected: np.ndarray) -> None:
    """The same numbers bit for bit, signs of zeros included; any NaN equals any other."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    unsigned = {2: np.uint16, 4: np.uint32}[actual.dtype.itemsize]
    with np.errstate(invalid="ignore"):  # ml_dtypes complains about signalling NaNs
        same = (actual.view(unsigned) == expected.view(unsigned)) | (np.isnan(actual) & np.isnan(expected))
    assert same.all(), f"{np.argwhere(~same)[:5]}: {actual[~same][:5]} instead of {expected[~same][:5]}"
