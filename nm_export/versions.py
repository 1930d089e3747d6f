"""Versions of the packages that take part, for records of what was computed with what."""

import importlib.metadata
from collections.abc import Iterable

RECORDED = (
    "nm_export",
    "torch",
    "transformers",
    "safetensors",
    "tokenizers",
    "onnx",
    "onnxruntime",
    "onnxruntime-genai",
    "onnxscript",
)
"""Packages whose versions decide what a run writes."""


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each package by its distribution's name; one that is not installed is left out."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def own_version() -> str:
    """Return the version of this package; that of a checkout which nothing has installed is not known."""
    return installed_versions(["nm_export"]).get("nm_export", "unknown")
