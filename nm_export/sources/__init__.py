"""Where models come from: the Hub, a local folder, a GGUF file, or a sample from the Python package index."""

from nm_export.sources.errors import SourceUnavailableError
from nm_export.sources.loading import LoadedModel, OpenSource, load_config_only, load_model
from nm_export.sources.locate import ModelSource, resolve_source

__all__ = [
    "LoadedModel",
    "ModelSource",
    "OpenSource",
    "SourceUnavailableError",
    "load_config_only",
    "load_model",
    "resolve_source",
]
