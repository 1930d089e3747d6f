"""Where models come from: the Hub, a local folder, a GGUF file, or a sample from the Python package index.

What loads a model is imported when it is asked for: to look where a model is needs no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nm_export.sources.errors import SourceUnavailableError
from nm_export.sources.locate import ModelSource, resolve_source

if TYPE_CHECKING:
    from nm_export.sources.loading import LoadedModel, OpenSource, load_config_only, load_model, load_tokenizer_only

__all__ = [
    "LoadedModel",
    "ModelSource",
    "OpenSource",
    "SourceUnavailableError",
    "load_config_only",
    "load_model",
    "load_tokenizer_only",
    "resolve_source",
]


if not TYPE_CHECKING:  # a type checker is to miss names that do not exist

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.loading"), name)
