"""Read only the weight rows of kept channels, and these as 8 or 4 bits:

MatMul(values, W) ── Add(b)          becomes          NMSparseMatMulNBits(values, codes, scales, zero_points,
                                                                          b + bias, token_shift, offset)

    W ~ (codes - zero_points) * scales          blocks along the inputs

`offset` and `bias` stay those of the float weights: what a shift gives back is free of quantization error.
"""

from typing import TYPE_CHECKING

import numpy as np

from nm_export.errors import NMExportError, UserError
from nm_export.onnx.matmul_nbits import ACCURACY_LEVEL
from nm_export.onnx.pruned_inputs import PrunedLinear
from nm_export.onnx.quantize import BlockQuantized, WeightFormat, pack, quantize_blocks
from nm_export.onnx.rewrite.editor import GraphEditor
from nm_export.onnx.rewrite.select_input import Selection
from nm_export.onnx.rewrite.sparse_product import sparse_product
from nm_export.onnx.sparse_matmul_nbits_function import NM_SPARSE_MATMUL_NBITS

if TYPE_CHECKING:
    from onnx import NodeProto


def quantized_product(
    editor: GraphEditor, matmul: "NodeProto", linear: PrunedLinear, selection: Selection, format: WeightFormat
) -> tuple[str, BlockQuantized]:
    """Turn `matmul`, and the bias that is added to it, into one node; return the name of its output and its weight.

    Raises:
        UserError: 4 bits and an odd number of outputs.
        NMExportError: the weight is not finite.
    """
    from onnx import TensorProto, helper

    name = matmul.input[1]
    weight = editor.map_constant(name)
    check_width(linear.name, weight.shape[1], format)
    try:
        quantized = quantize_blocks(weight, format)
    except ValueError as error:
        raise NMExportError(f"{linear.name} cannot be quantized: {error}.") from error
    packed, shape = pack(quantized.codes, format.bits), quantized.codes.shape
    dtype = TensorProto.UINT8 if format.bits == 8 else TensorProto.UINT4
    codes = editor.add_tensor(f"{name}_Q{format.bits}", packed, dtype, shape)
    scales = _add(editor, f"{name}_scales", quantized.scales)
    zeros_name = f"{name}_zero_points"
    if format.symmetric:  # one number, which all weights share
        zeros_name = f"nm_export.zero_point_{quantized.zero_points[0]:g}_{quantized.zero_points.dtype}"
    zeros = _add(editor, zeros_name, quantized.zero_points)
    editor.set_input(matmul, 1, codes)
    editor.drop_unread(name)
    y = sparse_product(editor, matmul, linear, selection)
    matmul.op_type = NM_SPARSE_MATMUL_NBITS
    attributes = {"block_size": format.block_size, "accuracy_level": ACCURACY_LEVEL}
    matmul.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    tail = list(matmul.input[2:])
    del matmul.input[2:]
    matmul.input.extend([scales, zeros, *tail])
    return y, quantized


def _add(editor: GraphEditor, name: str, numbers: np.ndarray) -> str:
    """Append a constant of the numbers' own dtype."""
    from onnx import helper

    return editor.add_tensor(name, numbers, helper.np_dtype_to_tensor_dtype(numbers.dtype), numbers.shape)


def check_width(name: str, outputs: int, format: WeightFormat) -> None:
    """Refuse what cannot be stored: rows of 4-bit numbers begin at a byte.

    Raises:
        UserError: 4 bits and an odd number of outputs.
    """
    if format.bits == 4 and outputs % 2:
        raise UserError(
            f"onnx.precision int4 needs an even number of outputs, and {name} has {outputs}: "
            "use int8, or leave this module dense."
        )
