"""The function body of `NMSparseMatMulNBits`: the product with a pruned input and a quantized weight in standard ONNX.

    w[k, o] = (weight[k, o] - zero_points[k // block_size, o]) * scales[k // block_size, o]
    y       = T(values w + token_shift * offset + bias)

A runtime without the kernel widens the whole weight to float32 in every call, whatever `accuracy_level` allows.
"""

from typing import TYPE_CHECKING

from nm_export.onnx.functions import parse_body

if TYPE_CHECKING:
    from onnx import FunctionProto

NM_SPARSE_MATMUL_NBITS = "NMSparseMatMulNBits"
"""Name of the operator that multiplies a pruned input by a weight of 8 or 4 bits."""

# DequantizeLinear takes zero points of the codes' type only, and these are real numbers: what they take off is
# subtracted from each block, rows filled up to whole blocks where the last is shorter.
#
# The subtraction stands between DequantizeLinear and MatMul for another reason too. ONNX Runtime makes one MatMulNBits
# of such a pair, which rounds its input to 8 bits at any accuracy_level. And no large value is made of constants alone,
# which ONNX Runtime would compute when it opens the model, and keep as float32.
_NM_SPARSE_MATMUL_NBITS = """
<domain: "ai.nm_export", opset_import: ["" : 22]>
NMSparseMatMulNBits <block_size, accuracy_level: int = 0>
    (values, weight, scales, zero_points, bias, token_shift, offset) => (y)
{
    size = Constant <value_int: int = @block_size> ()
    zero_1d = Constant <value_ints: ints = [0]> ()
    one_1d = Constant <value_ints: ints = [1]> ()
    rest = Constant <value_ints: ints = [-1]> ()

    values_f = Cast <to: int = 1> (values)
    scales_f = Cast <to: int = 1> (scales)
    zeros_f = Cast <to: int = 1> (zero_points)
    scaled_zeros = Mul (zeros_f, scales_f)
    zeros_of_blocks = Unsqueeze (scaled_zeros, one_1d)
    scaled_codes = DequantizeLinear <axis: int = 0, block_size: int = @block_size> (weight, scales_f)

    weight_shape = Shape (weight)
    rows = Shape <start: int = 0, end: int = 1> (weight)
    columns = Shape <start: int = 1, end: int = 2> (weight)
    size_1d = Reshape (size, one_1d)
    blocks_shape = Concat <axis: int = 0> (rest, size_1d, columns)
    negative_rows = Neg (rows)
    missing = Mod (negative_rows, size_1d)
    is_whole = Equal (missing, zero_1d)
    weight_f = If (is_whole) <
        then_branch = whole_blocks () => (float w_whole) {
            whole_codes = Reshape (scaled_codes, blocks_shape)
            whole = Sub (whole_codes, zeros_of_blocks)
            w_whole = Reshape (whole, weight_shape)
        },
        else_branch = shorter_last_block () => (float w_cut) {
            pads = Concat <axis: int = 0> (zero_1d, zero_1d, missing, zero_1d)
            filled = Pad (scaled_codes, pads)
            filled_codes = Reshape (filled, blocks_shape)
            filled_w = Sub (filled_codes, zeros_of_blocks)
            rows_shape = Concat <axis: int = 0> (rest, columns)
            filled_rows = Reshape (filled_w, rows_shape)
            w_cut = Slice (filled_rows, zero_1d, rows, zero_1d)
        }
    >

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
    return parse_body(_NM_SPARSE_MATMUL_NBITS)
