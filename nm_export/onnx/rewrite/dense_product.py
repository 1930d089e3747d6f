"""Keep a product of the runtime's own, and add behind it what belongs to the linear:

    MatMul(values, W) ── Add(b)       becomes       MatMul(values, W) ── Add(token_shift * offset) ── Add(b + bias)

The first Add is there for a dynamic shift only, the second where there is something to add.
"""

from typing import TYPE_CHECKING

from nm_export.onnx.pruned_inputs import PrunedLinear
from nm_export.onnx.rewrite.editor import GraphEditor
from nm_export.onnx.rewrite.select_input import Selection

if TYPE_CHECKING:
    from onnx import NodeProto


def dense_product(editor: GraphEditor, matmul: "NodeProto", linear: PrunedLinear, selection: Selection) -> str:
    """Return the name of the value that holds the outputs of `matmul` with its offset and biases."""
    path = matmul.name.removesuffix("/MatMul")
    constant = path[1:].replace("/", ".")
    y = matmul.output[0]
    bias_add = editor.bias_add(matmul)
    if linear.offset is not None:
        offset = editor.add_constant(f"{constant}.offset", linear.offset)
        shifted = editor.add("Mul", [selection.token_shift, offset], f"{path}/offset/Mul", like=y)
        y = editor.follow(y, "Add", shifted, f"{path}/offset/Add")
    if bias_add is None:
        if linear.bias is None:
            return y
        return editor.follow(y, "Add", editor.add_constant(f"{constant}.sparse_bias", linear.bias), f"{path}/bias/Add")
    add, bias = bias_add
    if linear.bias is not None:
        total = editor.take_constant(bias) + linear.bias
        editor.set_input(add, list(add.input).index(bias), editor.add_constant(f"{constant}.sparse_bias", total))
    return str(add.output[0])
