"""Quantized weights, and one-node models of NMSparseMatMulNBits that hold them."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from onnx import ModelProto, TensorProto, helper

from tests.kernels.matmul_sessions import make_model
from tests.kernels.sessions import DTYPES

INPUTS = ["values", "weight", "scales", "zero_points", "bias", "token_shift", "offset"]
FED = ["values", "bias", "token_shift", "offset"]

CODE_TYPES = {
    "int8": (TensorProto.INT8, -128, 127),
    "uint8": (TensorProto.UINT8, 0, 255),
    "int4": (TensorProto.INT4, -8, 7),
    "uint4": (TensorProto.UINT4, 0, 15),
}
"""Name -> ONNX type, smallest and largest code."""


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes [K, O], scales and zero points [K, ceil(O / block_size)] of a code type."""

    code_type: str
    block_size: int
    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray

    def dequantized(self) -> np.ndarray:
        """W [K, O], float64: exact."""
        block = np.arange(self.codes.shape[1]) // self.block_size
        codes, zero_points = self.codes.astype(np.int64), self.zero_points.astype(np.int64)
        return (codes - zero_points[:, block]) * self.scales.astype(np.float64)[:, block]


def random_weight(
    rng: np.random.Generator,
    code_type: str,
    K: int,
    O: int,  # noqa: E741
    block_size: int = 32,
    zero_points: bool = True,
) -> QuantizedWeight:
    """Every code of the type, scales of some magnitudes; zero points of every value or all 0."""
    _, low, high = CODE_TYPES[code_type]
    blocks = -(-O // block_size)
    return QuantizedWeight(
        code_type,
        block_size,
        rng.integers(low, high, (K, O), endpoint=True),
        (rng.standard_normal((K, blocks)) * 10.0 ** rng.integers(-3, 2, (K, blocks))).astype(np.float32),
        rng.integers(low, high, (K, blocks), endpoint=True) if zero_points else np.zeros((K, blocks), np.int64),
    )


def tensor_of_codes(name: str, code_type: str, codes: np.ndarray) -> TensorProto:
    """An initializer; two numbers of 4 bits share a byte, the first has the low bits."""
    element_type, *_ = CODE_TYPES[code_type]
    flat = codes.ravel().astype(np.uint8)
    if code_type.endswith("4"):
        flat = np.pad(flat & 15, (0, flat.size % 2))
        flat = flat[::2] | flat[1::2] << 4
    return helper.make_tensor(name, element_type, codes.shape, flat.tobytes(), raw=True)


def sparse_matmul_nbits_model(
    weight: QuantizedWeight, dtype: str = "float32", name: str = "node", values_shape: list | None = None
) -> ModelProto:
    """A model of one NMSparseMatMulNBits that holds the weight. bfloat16, which NumPy lacks, passes through Casts."""
    element_type = TensorProto.FLOAT if dtype == "bfloat16" else DTYPES[dtype][1]
    node = helper.make_node(
        "NMSparseMatMulNBits", INPUTS, ["y"], name=name, domain="ai.nm_export", block_size=weight.block_size
    )
    nodes = [node]
    if dtype == "bfloat16":
        node.input[0], node.output[0] = "narrow_values", "narrow_y"
        nodes.insert(0, helper.make_node("Cast", ["values"], ["narrow_values"], to=TensorProto.BFLOAT16))
        nodes.append(helper.make_node("Cast", ["narrow_y"], ["y"], to=TensorProto.FLOAT))
    types = dict.fromkeys(FED, TensorProto.FLOAT) | {"values": element_type}
    inputs = [helper.make_tensor_value_info(i, types[i], values_shape if i == "values" else None) for i in FED]
    initializers = [
        tensor_of_codes("weight", weight.code_type, weight.codes),
        helper.make_tensor("scales", TensorProto.FLOAT, weight.scales.shape, weight.scales.tobytes(), raw=True),
        tensor_of_codes("zero_points", weight.code_type, weight.zero_points),
    ]
    outputs = [helper.make_tensor_value_info("y", element_type, None)]
    return make_model(helper.make_graph(nodes, "one_node", inputs, outputs, initializers))


def feeds(values, O, bias=None, token_shift=None, offset=None) -> dict[str, np.ndarray]:  # noqa: E741
    """All inputs that are fed, in the dtypes that a session takes; zeros for those that are not given."""
    return {
        "values": values.astype(np.float32) if values.dtype == ml_dtypes.bfloat16 else values,
        "bias": np.zeros(O, np.float32) if bias is None else bias,
        "token_shift": np.zeros((*values.shape[:-1], 1), np.float32) if token_shift is None else token_shift,
        "offset": np.zeros(O, np.float32) if offset is None else offset,
    }
