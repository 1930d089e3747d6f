"""Quantized weights, and one-node models of NMSparseMatMulNBits that hold them."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.kernels.matmul_sessions import make_model
from tests.kernels.sessions import DTYPES

INPUTS = ["values", "weight", "scales", "zero_points", "bias", "token_shift", "offset"]
FED = ["values", "bias", "token_shift", "offset"]

CODE_TYPES = {"uint8": (TensorProto.UINT8, 255), "uint4": (TensorProto.UINT4, 15)}
"""Name -> ONNX type and largest code."""
ZERO_POINTS = ["symmetric", "codes", "real", "one real", "zeros"]
"""Kinds of zero points: one of the middle code, codes or real numbers by block, one real number, zeros by block."""
SCALE_DTYPES = [np.float32, np.float16]


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes [K, O], scales [ceil(K / block_size), O] and zero points, of the scales' shape or [1], of a code type."""

    code_type: str
    block_size: int
    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray

    def by_channel(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes, zero points and scales [K, O], float64: exact."""
        of_blocks = (np.broadcast_to(self.zero_points, self.scales.shape), self.scales)
        rows = np.arange(len(self.codes)) // self.block_size
        return self.codes.astype(np.float64), *(numbers.astype(np.float64)[rows] for numbers in of_blocks)

    def dequantized(self) -> np.ndarray:
        """W [K, O], float64."""
        codes, zero_points, scales = self.by_channel()
        return (codes - zero_points) * scales


def random_weight(
    rng: np.random.Generator,
    code_type: str,
    K: int,
    O: int,  # noqa: E741
    block_size: int = 32,
    zero_points: str = "codes",
    scale_dtype: type[np.floating] = np.float32,
) -> QuantizedWeight:
    """Every code of the type, scales of some magnitudes, and zero points of a kind."""
    _, high = CODE_TYPES[code_type]
    blocks = (-(-K // block_size), O)
    numbers = {
        "symmetric": lambda: np.full(1, (high + 1) // 2),
        "codes": lambda: rng.integers(0, high, blocks, endpoint=True),
        "real": lambda: rng.uniform(-high, 2 * high, blocks),
        "one real": lambda: rng.uniform(-high, 2 * high, 1),
        "zeros": lambda: np.zeros(blocks),
    }
    return QuantizedWeight(
        code_type,
        block_size,
        rng.integers(0, high, (K, O), endpoint=True),
        (rng.standard_normal(blocks) * 10.0 ** rng.integers(-3, 2, blocks)).astype(scale_dtype),
        numbers[zero_points]().astype(scale_dtype),
    )


def tensor_of_codes(name: str, code_type: str, codes: np.ndarray) -> TensorProto:
    """An initializer; two numbers of 4 bits share a byte, the first has the low bits."""
    element_type, _ = CODE_TYPES[code_type]
    flat = codes.ravel().astype(np.uint8)
    if code_type == "uint4":
        flat = np.pad(flat, (0, flat.size % 2))
        flat = flat[::2] | flat[1::2] << 4
    return helper.make_tensor(name, element_type, codes.shape, flat.tobytes(), raw=True)


def sparse_matmul_nbits_model(
    weight: QuantizedWeight,
    dtype: str = "float32",
    name: str = "node",
    values_shape: list | None = None,
    level: int | None = None,
) -> ModelProto:
    """A model of one NMSparseMatMulNBits that holds the weight. bfloat16, which NumPy lacks, passes through Casts."""
    element_type = TensorProto.FLOAT if dtype == "bfloat16" else DTYPES[dtype][1]
    attributes = {"block_size": weight.block_size} | ({} if level is None else {"accuracy_level": level})
    node = helper.make_node("NMSparseMatMulNBits", INPUTS, ["y"], name=name, domain="ai.nm_export", **attributes)
    nodes = [node]
    if dtype == "bfloat16":
        node.input[0], node.output[0] = "narrow_values", "narrow_y"
        nodes.insert(0, helper.make_node("Cast", ["values"], ["narrow_values"], to=TensorProto.BFLOAT16))
        nodes.append(helper.make_node("Cast", ["narrow_y"], ["y"], to=TensorProto.FLOAT))
    types = dict.fromkeys(FED, TensorProto.FLOAT) | {"values": element_type}
    inputs = [helper.make_tensor_value_info(i, types[i], values_shape if i == "values" else None) for i in FED]
    initializers = [
        tensor_of_codes("weight", weight.code_type, weight.codes),
        numpy_helper.from_array(weight.scales, "scales"),
        numpy_helper.from_array(weight.zero_points, "zero_points"),
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
