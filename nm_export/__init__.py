"""Calibrate, publish and run language models with N:M activation sparsity.

The names below are imported when they are first used: `import nm_export` itself is cheap.
"""

import ast
import difflib
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the table of public names, which `_homes` reads too
    from nm_export.calibration.calibrate import calibrate as calibrate
    from nm_export.calibration.text import token_sequences as token_sequences
    from nm_export.conversion import convert as convert
    from nm_export.errors import NMExportError as NMExportError
    from nm_export.errors import UserError as UserError
    from nm_export.evaluation.layer_scores import score_layers as score_layers
    from nm_export.evaluation.model import evaluate as evaluate
    from nm_export.evaluation.quality import divergence as divergence
    from nm_export.evaluation.quality import perplexity as perplexity
    from nm_export.evaluation.quality import torch_logits as torch_logits
    from nm_export.learning.learn import learn as learn
    from nm_export.learning.own_loop import trainable as trainable
    from nm_export.loading import load_exported as load_exported
    from nm_export.modeling import NMSparseConfig as NMSparseConfig
    from nm_export.modeling import NMSparseForCausalLM as NMSparseForCausalLM
    from nm_export.modeling import NMSparseModel as NMSparseModel
    from nm_export.onnx import NMSparseORTModelForCausalLM as NMSparseORTModelForCausalLM
    from nm_export.onnx import export_onnx as export_onnx
    from nm_export.ops import ops_library_path as ops_library_path
    from nm_export.pipeline import run as run
    from nm_export.publishing.save import save as save
    from nm_export.recipe import CalibrationSection as CalibrationSection
    from nm_export.recipe import LearningSection as LearningSection
    from nm_export.recipe import Recipe as Recipe
    from nm_export.recipe import SparsitySection as SparsitySection
    from nm_export.recipe import load_recipe as load_recipe
    from nm_export.sparsification import sparsify as sparsify
    from nm_export.verifying import verify as verify

    __version__: str


def _homes() -> dict[str, str]:
    """The module of each public name, read from the imports above: one table for Python and for type checkers."""
    assert __spec__ is not None
    assert __spec__.loader is not None
    source = __spec__.loader.get_source(__name__)  # type: ignore[attr-defined]
    table = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    return {
        alias.name: node.module
        for node in table.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


_HOMES = _homes()

__all__ = sorted(_HOMES)


if not TYPE_CHECKING:  # a type checker is to miss names that do not exist

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        if name == "__version__":
            from nm_export.versions import own_version

            return own_version()
        if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        close = difflib.get_close_matches(name, _HOMES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return [*__all__, "__version__", "evaluation", "onnx", "ops", "recipe"]
