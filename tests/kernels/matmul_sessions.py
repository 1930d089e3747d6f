"""Models of NMSparseMatMul alone and of ONNX Runtime's MatMul, for tests and for the benchmark."""

from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

from tests.kernels.sessions import DTYPES

INPUTS = ["values", "weight", "bias", "token_shift", "offset"]


def sparse_matmul_model(weight_dtype: str = "float32", shape: list | None = None, name: str = "node") -> bytes:
    """A model of one NMSparseMatMul that is fed all of its inputs. A bfloat16 weight enters as float32 through a Cast."""
    _, element_type = DTYPES[weight_dtype]
    node = helper.make_node("NMSparseMatMul", INPUTS, ["y"], name=name, domain="ai.nm_export")
    nodes, outside = [node], element_type
    if weight_dtype == "bfloat16":
        outside = TensorProto.FLOAT
        node.input[1] = "narrow_weight"
        nodes = [helper.make_node("Cast", ["weight"], ["narrow_weight"], to=element_type), node]
    inputs = [
        helper.make_tensor_value_info(i, outside if i == "weight" else TensorProto.FLOAT, shape if i == "values" else None)
        for i in INPUTS
    ]
    graph = helper.make_graph(nodes, "one_node", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return make_model(graph).SerializeToString()


def make_model(graph) -> ModelProto:
    """The graph as a model that knows the domain."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.nm_export", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
