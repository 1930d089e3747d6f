"""Read only the weight rows of kept channels:

MatMul(values, W) ── Add(b)          becomes          NMSparseMatMul(values, W, b + bias, token_shift, offset)
"""

from typing import TYPE_CHECKING

from nm_export.onnx.functions import DOMAIN
from nm_export.onnx.pruned_inputs import PrunedLinear
from nm_export.onnx.rewrite.editor import GraphEditor
from nm_export.onnx.rewrite.select_input import Selection
from nm_export.onnx.sparse_matmul_function import NM_SPARSE_MATMUL

if TYPE_CHECKING:
    from onnx import NodeProto


def sparse_product(editor: GraphEditor, matmul: "NodeProto", linear: PrunedLinear, selection: Selection) -> str:
    """Turn `matmul`, and the bias that is added to it, into one node; return the name of its output."""
    width = editor.width(matmul.output[0])
    bias = linear.bias
    bias_add = editor.bias_add(matmul)
    if bias_add is not None:
        add, name = bias_add
        own = editor.take_constant(name)
        bias = own if bias is None else own + bias
        editor.remove_node(add)
        matmul.output[0] = add.output[0]
    constant = matmul.name.removesuffix("/MatMul")[1:].replace("/", ".")
    bias_name = editor.add_vector(f"{constant}.sparse_bias", bias, 0, width)
    offset_name = editor.add_vector(f"{constant}.offset", linear.offset, 0, width)
    matmul.op_type, matmul.domain = NM_SPARSE_MATMUL, DOMAIN
    matmul.input.extend([bias_name, selection.token_shift, offset_name])
    return str(matmul.output[0])
