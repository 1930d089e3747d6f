"""Let a tied embedding read the codes of the output layer, as the builder of onnxruntime-genai does at 4 bits:

Gather(W, ids)          becomes          GatherBlockQuantized(Reshape(codes), ids, scales)          codes of W^T, O x K
"""

from typing import TYPE_CHECKING

from nm_export.onnx.matmul_nbits import RUNTIME_DOMAIN, MatMulNBitsWeight
from nm_export.onnx.rewrite.editor import GraphEditor

if TYPE_CHECKING:
    from onnx import NodeProto

GATHER = "GatherBlockQuantized"
"""Name of ONNX Runtime's operator."""


def shared_embedding(
    editor: GraphEditor, gather: "NodeProto", head: "NodeProto", weight: MatMulNBitsWeight
) -> "NodeProto":
    """Let `gather` look tokens up in the `weight` of `head`, a symmetric `MatMulNBits`; return the new node."""
    from onnx import TensorProto, helper

    table, ids = gather.input
    y, path = gather.output[0], gather.name.removesuffix("/Gather")
    vocabulary, blocks, blob = weight.packed.shape
    padded = blocks * weight.format.block_size

    def integers(values: list[int]) -> str:
        name, value = f"/model/constant_nodes/INT64/{values}", f"/model/constants/INT64/{values}"
        if name not in editor.nodes:  # inside the graph, where shape inference reads it, as the builder has it
            tensor = helper.make_tensor("", TensorProto.INT64, [len(values)], values)
            editor.add_node(helper.make_node("Constant", [], [value], name=name, value=tensor))
        return value

    rows = f"{path}/Reshape/output_0"
    shape = integers([vocabulary, blocks * blob])
    editor.add_node(helper.make_node("Reshape", [head.input[1], shape], [rows], name=f"{path}/Reshape"))
    editor.remove_node(gather)
    name = f"{path}/{GATHER}"
    found = y if padded == weight.inputs else f"{name}/output_0"
    node = helper.make_node(
        GATHER,
        [rows, ids, head.input[2]],
        [found],
        name=name,
        domain=RUNTIME_DOMAIN,
        bits=weight.format.bits,
        block_size=weight.format.block_size,
        gather_axis=0,
        quantize_axis=1,
    )
    editor.add_node(node)
    if found != y:
        editor.declare(found, y, last_dim=padded)
        bounds = [integers([0]), integers([weight.inputs]), integers([-1])]
        editor.add_node(helper.make_node("Slice", [found, *bounds], [y], name=f"{path}/Slice"))
    editor.drop_unread(table)
    return node
