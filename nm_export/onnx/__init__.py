"""ONNX: export a sparse model, run it in ONNX Runtime and onnxruntime-genai, look into its pruned linears.

The names below are imported when they are first used, so that the package works without the extra `onnx`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nm_export.onnx.dense_graph import build_dense_twin
    from nm_export.onnx.export import ExportResult, export_onnx
    from nm_export.onnx.genai import disable_library, enable_library, genai_model
    from nm_export.onnx.modeling_ort import NMSparseORTModelForCausalLM
    from nm_export.onnx.probe import run_probe
    from nm_export.onnx.session import create_session

_HOMES = {
    "ExportResult": "export",
    "NMSparseORTModelForCausalLM": "modeling_ort",
    "build_dense_twin": "dense_graph",
    "create_session": "session",
    "disable_library": "genai",
    "enable_library": "genai",
    "export_onnx": "export",
    "genai_model": "genai",
    "run_probe": "probe",
}
__all__ = [
    "ExportResult",
    "NMSparseORTModelForCausalLM",
    "build_dense_twin",
    "create_session",
    "disable_library",
    "enable_library",
    "export_onnx",
    "genai_model",
    "run_probe",
]


if not TYPE_CHECKING:  # a type checker is to miss names that do not exist

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
