"""The function body of `NMSparseMatMul`: the product with a pruned input in standard ONNX operators.

    y = T(values W + token_shift * offset + bias)

A runtime without the kernel reads every row of the weight, also those whose channels are zero.
"""

from typing import TYPE_CHECKING

from nm_export.onnx.functions import parse_body

if TYPE_CHECKING:
    from onnx import FunctionProto

NM_SPARSE_MATMUL = "NMSparseMatMul"
"""Name of the operator that multiplies a pruned input by a weight."""

_NM_SPARSE_MATMUL = """
<domain: "ai.nm_export", opset_import: ["" : 22]>
NMSparseMatMul (values, weight, bias, token_shift, offset) => (y)
{
    values_f = Cast <to: int = 1> (values)
    weight_f = Cast <to: int = 1> (weight)
    product = MatMul (values_f, weight_f)
    shifted = Mul (token_shift, offset)
    constant = Add (shifted, bias)
    sum = Add (product, constant)
    y = CastLike (sum, values)
}
"""


def nm_sparse_matmul_function() -> "FunctionProto":
    """The model-local function `ai.nm_export::NMSparseMatMul`.

    Inputs `values`, `weight`, `bias`, `token_shift`, `offset`; output `y`. Shapes and dtypes are those of
    docs/semantics.md. Every input must be given.
    """
    return parse_body(_NM_SPARSE_MATMUL)
