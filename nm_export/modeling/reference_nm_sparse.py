"""The base model's weights: where they are, when the repository does not hold them, and which ones have changed.

Files are fetched from the base model's repository, compared by hash and joined with the new parameters. Tensors in
memory are compared by some of their numbers.

This file is published with every model; it needs torch and transformers only. `config.json` names them as
`base_weights`:

* `repo_id` and `revision`, a repository on the Hub and its commit; or `folder`, on the machine that wrote the model;
* `files`: safetensors files there by name, each with its `size` in bytes and its `sha256`;
* `new_files`: the same of this repository, tensors that the base model has otherwise or not at all.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.hub import cached_file, cached_files

_HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
_INDEX = "model.safetensors.index.json"
_SMALL = ("config.json", "generation_config.json")
_SAMPLED = 64  # numbers of a tensor, spread over it
_ROWS = 1024  # of a matrix: training changes those rows of an embedding whose tokens it has seen


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those keyword arguments of `from_pretrained` that say how to read a repository."""
    return {name: options[name] for name in _HUB_OPTIONS if name in options}


@contextmanager
def joined_checkpoint(place: Any, base_weights: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a folder of links that holds the model in full: the base model's weights, and the new ones over them.

    The caller removes it when nothing is read from it any more; here it is removed if the block fails.

    Args:
        place: folder or repository that holds `config.json` and the new weights.
        base_weights: what `config.json` says.
        options: see `hub_options`; `base_folder` is a folder with the base model's files, wherever they come from.

    Raises:
        OSError: a file cannot be had.
        ValueError: a file is another one than `config.json` names, or `base_weights` makes no sense.
    """
    keys = {"files", "new_files", *(("folder",) if "folder" in base_weights else ("repo_id", "revision"))}
    if lacking := sorted(keys - base_weights.keys()):
        raise ValueError(f"config.json: base_weights lacks {', '.join(lacking)}.")
    own = hub_options(options)
    new = _fetch(place, base_weights["new_files"], own)
    base = _fetch_base(place, base_weights, own, options.get("base_folder"))
    small = {name: cached_file(place, name, _raise_exceptions_for_missing_entries=False, **own) for name in _SMALL}
    folder = Path(tempfile.mkdtemp(prefix="nm_sparse-"))
    try:
        weight_map = {}
        for prefix, files in (("base", base), ("new", new)):  # loaders read in this order, and what comes last counts
            for name, path in files.items():
                _link(path, folder / f"{prefix}-{name}")
                weight_map.update(dict.fromkeys(tensor_names(path), f"{prefix}-{name}"))
        for name, found in small.items():
            if found is not None:
                _link(found, folder / name)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def tensor_names(path: str | Path) -> list[str]:
    """Names of the tensors in a safetensors file."""
    with Path(path).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [name for name in header if name != "__metadata__"]


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_base(
    place: Any, base_weights: Mapping[str, Any], options: Mapping[str, Any], base_folder: Any
) -> dict[str, str]:
    files = base_weights["files"]
    own = {name: options[name] for name in options if name not in ("revision", "subfolder")}
    if base_folder is None and "folder" in base_weights:
        if not Path(place).is_dir():  # whoever publishes a model must not choose what is read here
            raise ValueError(
                f"{place} names the folder {base_weights['folder']} of another machine as its base model; give "
                "base_folder, a folder that holds it here."
            )
        base_folder = Path(place) / base_weights["folder"]  # an absolute path stays one
    if base_folder is None:
        return _fetch(base_weights["repo_id"], files, {**own, "revision": base_weights["revision"]})
    if not Path(base_folder).is_dir():
        raise OSError(f"The base model's folder {base_folder} is not there; give base_folder, a folder that holds it.")
    return _fetch(base_folder, files, {})


def _fetch(place: Any, files: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> dict[str, str]:
    """Paths of files by name, all of them the right ones."""
    for name in files:
        if not re.fullmatch(r"\w[\w.-]*\.safetensors", name, flags=re.ASCII):
            raise ValueError(f"config.json: base_weights names {name!r}, which is not the name of a safetensors file.")
    if not files:
        return {}
    try:
        paths = cached_files(place, list(files), **options)
    except Exception as error:  # of the HTTP library too
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"The weights in {place} that this model refers to cannot be had: {reason}") from error
    found = dict(zip(files, paths or (), strict=True))
    for name, path in found.items():
        size = Path(path).stat().st_size
        if size != files[name]["size"]:
            raise ValueError(_differs(name, place, f"{size:,} bytes instead of {files[name]['size']:,}"))
    with ThreadPoolExecutor(max_workers=4) as pool:
        for name, digest in zip(found, pool.map(file_sha256, found.values()), strict=True):
            if digest != files[name]["sha256"]:
                raise ValueError(
                    _differs(name, place, f"SHA-256 {digest[:12]}... instead of {files[name]['sha256'][:12]}...")
                )
    return found


def _differs(name: str, place: Any, how: str) -> str:
    return (
        f"{name} in {place} is not the file that this model was made from ({how}); nothing was loaded. If a download "
        "was damaged, force_download=True repeats it."
    )


def _link(path: str | Path, link: Path) -> None:
    path = Path(path).resolve()
    try:
        link.symlink_to(path)
    except OSError:  # a system without links, or without the right to make them
        shutil.copyfile(path, link)


def sample(tensor: Tensor) -> Tensor:
    """Some numbers of a tensor, spread over it and the same ones whatever its layout in memory; a view of it."""
    if tensor.dim() != 2:
        return tensor.reshape(-1)[:: max(1, tensor.numel() // _SAMPLED)]
    rows, columns = tensor.shape
    count = min(_SAMPLED, rows, columns)
    if count == 0:
        return tensor.new_empty(0)
    down, across = tensor.stride()
    return tensor.as_strided((count,), (rows // count * down + columns // count * across,))


def samples_of(model: nn.Module) -> dict[str, Tensor]:
    """Samples of all parameters of a model that are in memory, on the CPU, by name."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: _larger_sample(p) for name, p in parameters if type(p) is nn.Parameter and not p.is_meta}


def changed_tensors(samples: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> set[str]:
    """Names of tensors that are not those whose samples these are; another dtype alone is no change.

    A change of a few numbers of a matrix may be missed. Tensors without a sample or without data are not looked at.
    """
    changed = set()
    for full_name, tensor in tensors.items():
        name = full_name.replace(".base_layer.", ".")  # in the wrapper of an adapter
        if name in samples and not tensor.is_meta:
            plain = type(tensor) in (Tensor, nn.Parameter)
            if not plain or not torch.equal(_larger_sample(tensor), samples[name].to(tensor.dtype)):
                changed.add(name)
    return changed


def _larger_sample(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    parts = [sample(tensor)]
    if tensor.dim() == 2:
        parts.append(tensor[:: max(1, len(tensor) // _ROWS), tensor.shape[1] // 2])
    return torch.cat(parts).cpu()
