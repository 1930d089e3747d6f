"""Folders that leave the base model's weights where they are: what is written instead, and when that cannot be.

A tensor is left to the base model if its file gives the same number, bit for bit, in the dtype of the exported model.
All others, the sparsity parameters above all, are new weights and are written.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import Tensor

from nm_export.errors import UserError
from nm_export.modeling.reference_nm_sparse import file_sha256
from nm_export.recipe import ModelSection
from nm_export.sources import resolve_source
from nm_export.sources.checkpoint import stored_tensors, weight_files
from nm_export.sources.hub import fetch_model

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INDEX = "model.safetensors.index.json"
_NEW_FILES = "nm_parameters{suffix}.safetensors"
_NEW_INDEX = "nm_parameters.safetensors.index.json"


@dataclass(frozen=True)
class BaseWeights:
    """Safetensors files of a base model.

    Attributes:
        place: where readers find them, as `config.json` says it: `repo_id` and `revision`, or `folder`.
        folder: where they are on this machine.
        files: their names.
    """

    place: Mapping[str, str]
    folder: Path
    files: tuple[str, ...]

    def __str__(self) -> str:
        return self.place.get("folder") or f"{self.place['repo_id']} at {self.place['revision']}"


def check_source(section: ModelSection) -> None:
    """Raise a UserError if a model section names nothing that weights can be left to; looks at local files only."""
    source = resolve_source(section)
    if source.kind in ("gguf", "sample"):
        raise UserError(
            f"publish.weights: reference leaves weights to safetensors files of the base model, and "
            f"{source.describe()} has none (its weights are unpacked from GGUF); use publish.weights: full."
        )
    if source.path is not None:
        _check_dtype(section, weight_files(source.path, source.describe()))


def find_base_weights(section: ModelSection) -> BaseWeights:
    """Return the weight files of a model section, fetched if they are on the Hub.

    Raises:
        UserError: it has no safetensors files, or none that its dtype does not round, or cannot be had.
    """
    check_source(section)
    source = resolve_source(section)
    folder = fetch_model(section) if source.path is None else source.path
    # a snapshot's folder is called like its commit
    place = {"folder": str(folder)} if source.path else {"repo_id": section.source, "revision": folder.name}
    files = weight_files(folder, source.describe())
    _check_dtype(section, files)
    return BaseWeights(place, folder, tuple(file.name for file in files))


def base_weights_of(folder: Path) -> dict[str, Any] | None:
    """What the `config.json` of an exported folder says about weights that are elsewhere; None if none are."""
    found: dict[str, Any] | None = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("base_weights")
    return found


def refer(source: Path, target: Path, base: BaseWeights, max_shard_size: str) -> None:
    """Write those weights of a full model that its base model does not have, and a configuration that names the others.

    Args:
        source: folder with the weights of the full model.
        target: folder with its `config.json`; when it is the same, its weight files are replaced.
        base: the base model's files.
        max_shard_size: largest safetensors file.

    Raises:
        UserError: no weight is the base model's, or its files hold weights in another form.
    """
    full = [file.name for file in weight_files(source, str(source))]
    with _opened(source, full) as tensors, _opened(base.folder, base.files) as originals:
        new = {name: tensors.read(name) for name in tensors if not _is_same(tensors, originals, name)}
        if len(new) == len(tensors):
            raise UserError(f"No weight of the exported model is that of {base}; use publish.weights: full.")
        _check_names(tensors, originals, new, base)
        for extra in originals.keys() - tensors.keys():  # a tied weight that the base model holds under two names
            twin = next((name for name in new if name in originals and originals.equal(name, extra)), None)
            if twin is not None:
                new[extra] = new[twin].clone()
        for leftover in target.glob(_NEW_FILES.format(suffix="*")):
            leftover.unlink()
        save_torch_state_dict(
            new, target, filename_pattern=_NEW_FILES, max_shard_size=max_shard_size, metadata={"format": "pt"}
        )
    (target / _NEW_INDEX).unlink(missing_ok=True)  # what config.json says is enough
    new_files = sorted(path.name for path in target.glob(_NEW_FILES.format(suffix="*")))
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config["base_weights"] = {
        **base.place,
        "files": _described(base.folder, base.files),
        "new_files": _described(target, new_files),
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (target / "config.json").write_text(text, encoding="utf-8")
    if source == target:
        for name in (*full, _INDEX):
            (target / name).unlink(missing_ok=True)


class _Tensors(Mapping[str, Any]):
    """Tensors of several safetensors files, read one by one."""

    def __init__(self, files: list[Any]) -> None:
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a dict

    def __getitem__(self, name: str) -> Any:
        """The tensor, its data not read yet: with `get_shape()`."""
        return self._files[name].get_slice(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, name: str) -> Tensor:
        """The tensor."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def equal(self, name: str, other: str) -> bool:
        """Whether two of them are the same."""
        return bits_equal(self.read(name), self.read(other))


@contextmanager
def _opened(folder: Path, names: Iterable[str]) -> Iterator[_Tensors]:
    with ExitStack() as stack:
        yield _Tensors([stack.enter_context(safe_open(folder / name, framework="pt")) for name in names])


def _is_same(tensors: _Tensors, originals: _Tensors, name: str, original: str | None = None) -> bool:
    """Whether the base model's tensor, loaded in any dtype, gives what the full model's gives."""
    original = original or name
    if original not in originals or tensors[name].get_shape() != originals[original].get_shape():
        return False
    ours, theirs = tensors.read(name), originals.read(original)
    if torch.promote_types(ours.dtype, theirs.dtype) != ours.dtype:  # rounded once already, when it was exported
        return False
    return bits_equal(ours, theirs.to(ours.dtype))


def _check_names(tensors: _Tensors, originals: _Tensors, new: Iterable[str], base: BaseWeights) -> None:
    """Raise a UserError if loading would make further tensors, in the place of new ones, of those of the base model.

    A tensor with another name is harmless; what transformers joins from several, such as experts, is not.
    """
    renamed = [name for name in new if name not in originals and ".nm_" not in name]
    for extra in originals.keys() - tensors.keys() if renamed else ():
        if not any(_is_same(tensors, originals, name, extra) for name in renamed):
            raise UserError(
                f"The files of {base} hold {extra} where the model has other weights ({renamed[0]}), so that they "
                "cannot be referred to; use publish.weights: full."
            )


def bits_equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same in dtype, shape and every bit; NaN may equal NaN, and 0 is not -0."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _check_dtype(section: ModelSection, files: Iterable[Path]) -> None:
    if section.dtype == "auto":
        return
    wanted = getattr(torch, section.dtype)
    stored = {_DTYPES[tensor.dtype] for tensor in stored_tensors(files).values() if tensor.dtype in _DTYPES}
    if not any(torch.promote_types(dtype, wanted) == wanted for dtype in stored):
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in stored))
        raise UserError(
            f"publish.weights: reference leaves weights to {section.source}, whose {names} weights model.dtype "
            f"{section.dtype} rounds, so that none is the same; set model.dtype to auto, or publish.weights to full."
        )


def _described(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {"size": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in sorted(names)
    }
