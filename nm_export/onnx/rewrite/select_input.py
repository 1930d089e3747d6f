"""Prune the input that some products share:

x ── MatMul(W)          becomes          x ── NMTopK(score, shift) ── values ── MatMul(W)
"""

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nm_export.errors import NMExportError
from nm_export.onnx.functions import DOMAIN, NM_TOPK
from nm_export.onnx.pruned_inputs import PrunedInput
from nm_export.onnx.rewrite.editor import GraphEditor

if TYPE_CHECKING:
    from onnx import NodeProto


@dataclass(frozen=True)
class Selection:
    """A new `NMTopK` node and the names of the values around it."""

    node: "NodeProto"
    x: str
    shift: str
    values: str
    token_shift: str


def select_input(editor: GraphEditor, matmuls: list["NodeProto"], pruned: PrunedInput) -> Selection:
    """Let `matmuls` read the pruned form of what they read.

    Raises:
        NMExportError: they read different values.
    """
    from onnx import helper

    x = matmuls[0].input[0]
    if any(matmul.input[0] != x for matmul in matmuls):
        names = ", ".join(linear.name for linear in pruned.linears)
        raise NMExportError(f"{names} do not read the same value in the ONNX graph.")
    name = _node_name(editor, [matmul.name for matmul in matmuls])
    constant, K = name[1:].replace("/", "."), editor.width(x)
    score = editor.add_vector(f"{constant}.score", pruned.score, 1, K)
    shift = editor.add_vector(f"{constant}.shift", pruned.shift, 0, K)
    outputs = [f"{name}/output_0", f"{name}/output_1"]
    node = helper.make_node(
        NM_TOPK, [x, score, shift], outputs, name=name, domain=DOMAIN, **dict[str, Any](pruned.attributes)
    )
    editor.add_node(node)
    editor.declare(outputs[0], x)
    editor.declare(outputs[1], x, last_dim=1)
    for matmul in matmuls:
        editor.set_input(matmul, 0, outputs[0])
    return Selection(node, x, shift, *outputs)


def _node_name(editor: GraphEditor, products: list[str]) -> str:
    """`/model/layers.0/mlp/down_proj/NMTopK` for one product, `/model/layers.0/mlp/NMTopK` for several."""
    name = f"{posixpath.commonpath([posixpath.dirname(product) for product in products])}/{NM_TOPK}"
    return name if name not in editor.nodes else f"{posixpath.dirname(products[0])}/{NM_TOPK}"
