"""Quantize a product whose input is not pruned as the builder of onnxruntime-genai does:

MatMul(x, W)          becomes          MatMulNBits(x, codes, scales, zero_points)          blocks along the inputs
"""

from typing import TYPE_CHECKING

import numpy as np

from nm_export.onnx.matmul_nbits import (
    ACCURACY_LEVEL,
    MATMUL_NBITS,
    RUNTIME_DOMAIN,
    MatMulNBitsWeight,
    quantize_matmul_nbits,
)
from nm_export.onnx.quantize import WeightFormat
from nm_export.onnx.rewrite.editor import GraphEditor

if TYPE_CHECKING:
    from onnx import NodeProto


def matmul_nbits(editor: GraphEditor, matmul: "NodeProto", format: WeightFormat) -> MatMulNBitsWeight:
    """Turn `matmul` into a `MatMulNBits`, node and constants named as the builder names them; return its weight."""
    from onnx import TensorProto, helper

    name = matmul.input[1]
    weight = editor.map_constant(name)
    K, O = weight.shape  # noqa: E741
    quantized = quantize_matmul_nbits(weight, format)

    def add(name: str, stored: np.ndarray) -> str:
        return editor.add_tensor(name, np.ascontiguousarray(stored), TensorProto.UINT8, stored.shape)

    inputs = [add(f"{name}_Q{format.bits}", quantized.packed)]
    inputs.append(editor.add_constant(f"{name}_scales", quantized.scales))
    if quantized.zero_points is not None:
        inputs.append(add(f"{name}_zero_points", quantized.zero_points))
    matmul.op_type, matmul.domain = MATMUL_NBITS, RUNTIME_DOMAIN
    del matmul.input[1:]
    matmul.input.extend(inputs)
    attributes = {
        "K": K,
        "N": O,
        "bits": format.bits,
        "block_size": format.block_size,
        "accuracy_level": ACCURACY_LEVEL,
    }
    matmul.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    editor.rename_node(matmul, f"{matmul.name}_Q{format.bits}")
    editor.drop_unread(name)
    return quantized
