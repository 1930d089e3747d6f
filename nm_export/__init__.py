"""Calibrate, publish and run language models with N:M activation sparsity.

The names below are imported when they are first used: `import nm_export` itself is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nm_export.calibration import calibrate
    from nm_export.calibration.text import token_sequences
    from nm_export.conversion import convert
    from nm_export.errors import NMExportError, UserError
    from nm_export.evaluation import divergence, perplexity, torch_logits
    from nm_export.evaluation.model import evaluate
    from nm_export.learning import learn
    from nm_export.loading import load_exported
    from nm_export.modeling import NMSparseConfig, NMSparseForCausalLM, NMSparseModel
    from nm_export.onnx import NMSparseORTModelForCausalLM, export_onnx
    from nm_export.ops import ops_library_path
    from nm_export.pipeline import run
    from nm_export.publishing.save import save
    from nm_export.recipe import CalibrationSection, Recipe, load_recipe
    from nm_export.sparsification import sparsify
    from nm_export.verification.forms import verify

_HOMES = {
    "CalibrationSection": "recipe",
    "NMExportError": "errors",
    "NMSparseConfig": "modeling",
    "NMSparseForCausalLM": "modeling",
    "NMSparseModel": "modeling",
    "NMSparseORTModelForCausalLM": "onnx",
    "Recipe": "recipe",
    "UserError": "errors",
    "calibrate": "calibration",
    "convert": "conversion",
    "divergence": "evaluation",
    "evaluate": "evaluation.model",
    "export_onnx": "onnx",
    "learn": "learning",
    "load_exported": "loading",
    "load_recipe": "recipe",
    "ops_library_path": "ops",
    "perplexity": "evaluation",
    "run": "pipeline",
    "save": "publishing.save",
    "sparsify": "sparsification",
    "token_sequences": "calibration.text",
    "torch_logits": "evaluation",
    "verify": "verification",
}

__all__ = [
    "CalibrationSection",
    "NMExportError",
    "NMSparseConfig",
    "NMSparseForCausalLM",
    "NMSparseModel",
    "NMSparseORTModelForCausalLM",
    "Recipe",
    "UserError",
    "calibrate",
    "convert",
    "divergence",
    "evaluate",
    "export_onnx",
    "learn",
    "load_exported",
    "load_recipe",
    "ops_library_path",
    "perplexity",
    "run",
    "save",
    "sparsify",
    "token_sequences",
    "torch_logits",
    "verify",
]


if not TYPE_CHECKING:  # a type checker is to miss names that do not exist

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
