"""Give back, through two thin products, part of what was dropped (R-Sparse, arXiv 2504.19449):

    y          becomes          y + (d B^T) A^T          d = Where(values == 0, x - e, 0)

`d` is computed once an input. It stays in the standard operators: what was dropped is neither sparse nor large.
"""

from typing import TYPE_CHECKING

import numpy as np

from nm_export.onnx.pruned_inputs import PrunedInput, PrunedLinear
from nm_export.onnx.rewrite.editor import GraphEditor
from nm_export.onnx.rewrite.select_input import Selection

if TYPE_CHECKING:
    from onnx import NodeProto


def add_dropped(editor: GraphEditor, selection: Selection, pruned: PrunedInput) -> str | None:
    """Return the name of a new value `d` `[..., K]`; None if no linear of the input has a residual."""
    from onnx import TensorProto

    if all(linear.residual_in is None for linear in pruned.linears):
        return None
    name = f"{selection.node.name}/dropped"
    z = x = selection.x
    if pruned.dynamic or pruned.shift is not None:
        e = selection.token_shift if pruned.dynamic else selection.shift
        z = editor.add("Sub", [x, e], f"{name}/Sub", like=x)
    zero = editor.add_constant("nm_export.zero", np.zeros(()))
    is_dropped = editor.add("Equal", [selection.values, zero], f"{name}/Equal", like=x, dtype=TensorProto.BOOL)
    return editor.add("Where", [is_dropped, z, zero], f"{name}/Where", like=x)


def project_dropped(editor: GraphEditor, dropped: str, matmul: "NodeProto", linear: PrunedLinear) -> str:
    """Return the name of a new value `d B^T` `[..., r]`, named after the linear's first product."""
    assert linear.residual_in is not None
    path = matmul.name.removesuffix("/MatMul")
    constant = editor.add_constant(f"{path[1:].replace('/', '.')}.residual_in", linear.residual_in.T)
    return editor.add(
        "MatMul", [dropped, constant], f"{path}/residual_in/MatMul", like=dropped, last_dim=len(linear.residual_in)
    )


def add_residual(editor: GraphEditor, projected: str, y: str, matmul: "NodeProto", linear: PrunedLinear) -> str:
    """Add `(d B^T) A^T` to `y`, the outputs of `matmul`; return the name of the sum."""
    assert linear.residual_out is not None
    path = matmul.name.removesuffix("/MatMul")
    constant = editor.add_constant(f"{path[1:].replace('/', '.')}.residual_out", linear.residual_out.T)
    residual = editor.add("MatMul", [projected, constant], f"{path}/residual_out/MatMul", like=y)
    return editor.follow(y, "Add", residual, f"{path}/residual/Add")
