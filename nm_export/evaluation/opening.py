"""Whatever a user calls a model (exported, plain, GGUF, sample, Hub) -> a model in memory with its tokenizer."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from nm_export.causality import check_causal
from nm_export.compute_dtype import choose_compute_type
from nm_export.errors import NMExportError, UserError
from nm_export.exported import find_exported
from nm_export.json_files import read_json
from nm_export.loading import load_sparse
from nm_export.recipe import ModelSection
from nm_export.sources import OpenSource, load_model
from nm_export.sources.hub import fetch_config
from nm_export.sources.locate import resolve_source
from nm_export.tokenizer_files import load_tokenizer

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "onnx")


@dataclass(frozen=True)
class OpenModel:
    """A model that can be asked.

    Attributes:
        model: a transformers causal language model in evaluation mode, or an `NMSparseORTModelForCausalLM`.
        tokenizer: its tokenizer.
        provenance: the source as the user named it, the backend, and what is known of its origin. JSON values only.
        base: where its dense weights came from, for an exported model that says so; else None.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    provenance: dict[str, Any]
    base: ModelSection | None = None

    @property
    def name(self) -> str:
        """A short name for tables."""
        source: str = self.provenance["source"]
        path = Path(source).expanduser()
        return path.resolve().name if path.exists() else source


def open_model(source: str | Path, *, backend: str = "torch", device: str = "cpu") -> OpenModel:
    """Open an exported folder or anything that a recipe accepts as `model.source`.

    Args:
        source: an exported folder, its repository on the Hub, or a dense model: a transformers folder, a Hub id, a
            .gguf file, `sample:smollm2-135m-instruct`.
        backend: `torch`, or `onnx` for what was exported with ONNX.
        device: where the torch model runs, for example `cuda`.

    Raises:
        UserError: there is no such model, or it was not exported for that backend.
    """
    if backend not in BACKENDS:
        raise UserError(f"there is no backend {backend}; choose {' or '.join(BACKENDS)}")
    section = ModelSection(source=str(source))
    try:
        folder = _sparse_folder(section, backend)
        if folder is None:
            if backend == "onnx":
                raise UserError(f"{source} is no exported model; --backend onnx needs a folder that nm-export wrote")
            return _open_dense(section, device)
    except NMExportError as error:
        # the sources speak of the recipe's field, which this user never wrote
        raise type(error)(str(error).removeprefix("model.source: ")) from error
    return _open_sparse(folder, str(source), backend, device)


def open_base(opened: OpenModel, *, device: str = "cpu") -> OpenModel | None:
    """Open the dense model that an exported one was made from; None where it is not named or cannot be had."""
    if opened.base is None:
        return None
    try:
        return _open_dense(opened.base, device)
    except NMExportError as error:
        logger.warning("The base model %s cannot be loaded (%s).", opened.base.source, error)
        return None


def _sparse_folder(section: ModelSection, backend: str) -> Path | None:
    """Local folder of an exported model; None if the source is a dense one."""
    located = resolve_source(section)
    if located.kind == "folder":
        assert located.path is not None
        return located.path if _is_sparse(located.path) else None
    if located.kind != "hub" or not _is_sparse(fetch_config(section)):
        return None
    return find_exported(section.source, "onnx" if backend == "onnx" else "torch")


def _is_sparse(folder: Path) -> bool:
    try:
        config = read_json(folder / "config.json")
    except (OSError, UserError):
        return False  # what is wrong with it, the loader of dense models says
    return isinstance(config, dict) and config.get("model_type") == "nm_sparse"


def _open_sparse(folder: Path, source: str, backend: str, device: str) -> OpenModel:
    record = _record(folder)
    provenance = {"source": source, "kind": "exported", "backend": backend}
    provenance |= {key: record[key] for key in ("recipe_sha256", "base_model") if key in record}
    model: Any
    try:
        tokenizer = load_tokenizer(folder)
        if backend == "onnx":
            from nm_export.onnx import NMSparseORTModelForCausalLM

            # a torch model computes beside it: a session that waits must not take its cores
            model = NMSparseORTModelForCausalLM.from_pretrained(folder, spinning=False)
        else:
            model = load_sparse(folder, quick=device == "cpu")
    except NMExportError:
        raise
    except Exception as error:  # safetensors, tokenizers and configurations raise errors of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source} cannot be loaded ({reason}); write it again with nm-export") from error
    if backend == "torch":
        model = _moved(model, device)
    return OpenModel(model, tokenizer, provenance, _base(record))


def _open_dense(section: ModelSection, device: str) -> OpenModel:
    opened = OpenSource(section)
    # on other devices half precision is quick
    setting = section.compute_dtype if device == "cpu" else "stored"
    compute = choose_compute_type(setting, opened.stored_dtype, opened.parameters)
    loaded = load_model(section, opened, compute)
    check_causal(loaded.model, section.source)
    model = _moved(loaded.model, device)
    return OpenModel(model, loaded.tokenizer, {**loaded.provenance, "backend": "torch"})


def _record(folder: Path) -> dict[str, Any]:
    """What the export wrote down about itself; empty for a folder that was saved without."""
    try:
        record = read_json(folder / "nm_export.json")
    except (OSError, UserError):
        return {}
    return record if isinstance(record, dict) else {}


def _base(record: dict[str, Any]) -> ModelSection | None:
    base = record.get("base_model")
    if not isinstance(base, dict) or "source" not in base:
        return None
    fields = {"source": base["source"], "revision": base.get("revision"), "dtype": base.get("dtype", "auto")}
    try:
        return ModelSection(**fields)
    except ValueError:  # written by another version
        return None


def _moved(model: Any, device: str) -> Any:
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the model cannot be put on the device {device!r}: {reason}") from error
