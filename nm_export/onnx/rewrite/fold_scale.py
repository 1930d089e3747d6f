"""Scale the outputs of a linear at no cost at run time:

(values W) * scale          becomes          values (W * scale)          scale multiplies the columns of W, K x O
"""

from typing import TYPE_CHECKING

import numpy as np

from nm_export.onnx.rewrite.editor import GraphEditor

if TYPE_CHECKING:
    from onnx import NodeProto


def fold_scale(editor: GraphEditor, matmul: "NodeProto", scale: np.ndarray | None) -> None:
    """Multiply the weight of `matmul` by `scale` `[O]`, or by nothing; a weight that others read is copied first."""
    if scale is not None and (scale != 1).any():
        editor.scale_columns(matmul, 1, scale)
