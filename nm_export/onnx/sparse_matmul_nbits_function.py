"""The function body of `NMSparseMatMulNBits`: the product with a pruned input and a quantized weight in standard ONNX.

    w[k, o] = (weight[k, o] - zero_points[k, o // block_size]) * scales[k, o // block_size]
    y       = T(values w + token_shift * offset + bias)

A runtime without the kernel widens the whole weight to float32 in every call, whatever `accuracy_level` allows.
"""

from typing import TYPE_CHECKING

from nm_export.onnx.extras import require

if TYPE_CHECKING:
    from onnx import FunctionProto

NM_SPARSE_MATMUL_NBITS = "NMSparseMatMulNBits"
"""Name of the operator that multiplies a pruned input by a weight of 8 or 4 bits."""

_NM_SPARSE_MATMUL_NBITS = """
<domain: "ai.nm_export", opset_import: ["" : 22]>
NMSparseMatMulNBits <block_size, accuracy_level: int = 0>
    (values, weight, scales, zero_points, bias, token_shift, offset) => (y)
{
    values_f = Cast <to: int = 1> (values)
    weight_f = DequantizeLinear <axis: int = 1, block_size: int = @block_size> (weight, scales, zero_points)
    product = MatMul (values_f, weight_f)
    shifted = Mul (token_shift, offset)
    constant = Add (shifted, bias)
    sum = Add (product, constant)
    y = CastLike (sum, values)
}
"""


def nm_sparse_matmul_nbits_function() -> "FunctionProto":
    """The model-local function `ai.nm_export::NMSparseMatMulNBits`.

    Inputs `values`, `weight`, `scales`, `zero_points`, `bias`, `token_shift`, `offset`; attributes `block_size` and
    `accuracy_level`; output `y`. Shapes and dtypes are those of docs/semantics.md. Every input and `block_size` must be
    given.
    """
    require("onnx", "onnx")
    import onnx.parser

    return onnx.parser.parse_function(_NM_SPARSE_MATMUL_NBITS)
