"""Validation of graph files by onnx itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nm_export.errors import NMExportError

# An operator that ONNX Runtime keeps in the standard domain although the standard does not have it.
_RUNTIME_OPERATOR = "SimplifiedLayerNormalization"


def check_graph(path: str | Path) -> None:
    """Validate a graph file with onnx.checker and onnx.shape_inference; files above 2 GB are checked where they lie.

    Raises:
        NMExportError: either of them refuses the file.
    """
    import onnx
    import onnx.checker
    import onnx.shape_inference

    try:
        with _runtime_operator():
            onnx.checker.check_model(str(path))
            skeleton = onnx.load(path, load_external_data=False)  # shapes follow from the graph without the weights
            onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise NMExportError(f"{path} is not a valid ONNX file: {error}") from error


@contextmanager
def _runtime_operator() -> Iterator[None]:
    """Let onnx know the runtime's operator for a while; without it the checker stops there and sees nothing else."""
    from onnx import defs

    if defs.has(_RUNTIME_OPERATOR, 22, ""):
        yield
        return
    parameter = defs.OpSchema.FormalParameter
    schema = defs.OpSchema(
        _RUNTIME_OPERATOR,
        "",
        1,
        inputs=[parameter("X", "T"), parameter("scale", "T")],
        outputs=[parameter("Y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[
            defs.OpSchema.Attribute("axis", defs.OpSchema.AttrType.INT, required=False),
            defs.OpSchema.Attribute("epsilon", defs.OpSchema.AttrType.FLOAT, required=False),
            defs.OpSchema.Attribute("stash_type", defs.OpSchema.AttrType.INT, required=False),
        ],
    )
    defs.register_schema(schema)
    try:
        yield
    finally:
        defs.deregister_schema(_RUNTIME_OPERATOR, 1, "")
