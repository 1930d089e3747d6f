"""One-node models of NMSparseMatMul and what is fed to them."""

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from tests.kernels.sessions import DTYPES

INPUTS = ["values", "weight", "bias", "token_shift", "offset"]
TYPES = [(dtype, dtype) for dtype in DTYPES] + [("float32", "float16"), ("float32", "bfloat16")]
"""Pairs of the dtypes of values and weight."""


def sparse_matmul_model(
    dtype: str = "float32", weight_dtype: str = "float32", name: str = "node", values_shape: list | None = None
) -> bytes:
    """A model of one NMSparseMatMul, fed all of its inputs. bfloat16, which NumPy lacks, passes through Casts."""
    outside = dict.fromkeys([*INPUTS, "y"], TensorProto.FLOAT)
    node = helper.make_node("NMSparseMatMul", INPUTS, ["y"], name=name, domain="ai.nm_export")
    nodes = [node]
    for i, (value, value_dtype) in enumerate([("values", dtype), ("weight", weight_dtype)]):
        if value_dtype == "bfloat16":
            node.input[i] = f"narrow_{value}"
            nodes.insert(0, helper.make_node("Cast", [value], [f"narrow_{value}"], to=TensorProto.BFLOAT16))
        else:
            outside[value] = DTYPES[value_dtype][1]
    if dtype == "bfloat16":
        node.output[0] = "narrow_y"
        nodes.append(helper.make_node("Cast", ["narrow_y"], ["y"], to=TensorProto.FLOAT))
    else:
        outside["y"] = DTYPES[dtype][1]
    inputs = [helper.make_tensor_value_info(i, outside[i], values_shape if i == "values" else None) for i in INPUTS]
    outputs = [helper.make_tensor_value_info("y", outside["y"], None)]
    return make_model(helper.make_graph(nodes, "one_node", inputs, outputs)).SerializeToString()


def with_constants(model: bytes, constants: dict[str, np.ndarray]) -> bytes:
    """The model with some inputs of its graph made constants."""
    changed = ModelProto.FromString(model)
    fed = [i for i in changed.graph.input if i.name not in constants]
    del changed.graph.input[:]
    changed.graph.input.extend(fed)
    changed.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return changed.SerializeToString()


def make_model(graph: GraphProto) -> ModelProto:
    """The graph as a model that knows the domain."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.nm_export", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def feeds(values, weight, bias=None, token_shift=None, offset=None) -> dict[str, np.ndarray]:
    """All inputs, in the dtypes that a session takes; zeros for those that are not given."""
    O = weight.shape[1]  # noqa: E741
    inputs = {
        "values": values,
        "weight": weight,
        "bias": np.zeros(O, np.float32) if bias is None else bias,
        "token_shift": np.zeros((*values.shape[:-1], 1), np.float32) if token_shift is None else token_shift,
        "offset": np.zeros(O, np.float32) if offset is None else offset,
    }
    return {k: v.astype(np.float32) if v.dtype == ml_dtypes.bfloat16 else v for k, v in inputs.items()}


def multiply(session: ort.InferenceSession, values: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Y, of values' dtype."""
    return session.run(None, feeds(values, *others))[0].astype(values.dtype)
