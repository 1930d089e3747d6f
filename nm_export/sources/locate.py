"""`model.source` -> where the model is, without reading it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nm_export.errors import UserError
from nm_export.recipe import ModelSection
from nm_export.sources.sample import SAMPLES, Sample

_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from."""

    kind: Literal["hub", "folder", "gguf", "sample"]
    section: ModelSection
    path: Path | None = None
    """The folder or the GGUF file; None for a Hub model and for a sample."""
    sample: Sample | None = None

    @property
    def base_model(self) -> str | None:
        """Hub id of the model, where there is one."""
        if self.sample is not None:
            return self.sample.base_model
        return self.section.source if self.kind == "hub" else None

    def describe(self) -> str:
        """A few words for messages: `the Hub model org/name`."""
        kinds = {"hub": "the Hub model", "folder": "the folder", "gguf": "the GGUF file", "sample": "the sample model"}
        return f"{kinds[self.kind]} {self.section.source}"


def resolve_source(section: ModelSection) -> ModelSource:
    """Tell what kind of source this is; looks at local paths only.

    Raises UserError when it is no existing path, no known sample and no possible Hub id, or has a revision and is not
    of the Hub.
    """
    located = _locate(section)
    if section.revision is not None and located.kind != "hub":
        raise UserError(f"model.revision is for Hub models, and {located.describe()} is none; leave it out")
    return located


def _locate(section: ModelSection) -> ModelSource:
    source = section.source
    if source.startswith("sample:"):
        sample = SAMPLES.get(source.removeprefix("sample:"))
        if sample is None:
            raise UserError(
                f"model.source: there is no {source}; the samples are {', '.join(f'sample:{s}' for s in SAMPLES)}"
            )
        return ModelSource("sample", section, sample=sample)
    path = Path(source).expanduser()
    if path.is_dir():
        return ModelSource("folder", section, path.resolve())
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise UserError(f"model.source: there is no file {path} (looked from {Path.cwd()})")
        return ModelSource("gguf", section, path.resolve())
    if path.is_file():
        raise UserError(f"model.source: {path} is a file; give a Hugging Face model folder, a .gguf file or a Hub id")
    if not _HUB_ID.fullmatch(source):
        raise UserError(
            f"model.source: {source!r} is neither an existing folder nor a Hub id such as mistralai/Mistral-7B-v0.3"
        )
    return ModelSource("hub", section)
