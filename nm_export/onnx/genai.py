"""onnxruntime-genai: switch the compiled operators on in a folder, or for one process only.

Published folders name no library, so that they open everywhere; the function bodies run then. onnxruntime-genai loads a
library of operators only from within the model's folder, hence the copies.
"""

import atexit
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from nm_export import ops
from nm_export.errors import NMExportError, UserError
from nm_export.json_files import read_json_object
from nm_export.onnx.extras import require
from nm_export.onnx.repository import local_folder
from nm_export.onnx.session import has_operators

_CONFIG = "genai_config.json"
_KEY = "custom_ops_library"


def enable_library(folder: str | Path) -> Path:
    """Copy this platform's compiled operators beside the model and name them in genai_config.json.

    Programs that open the folder with onnxruntime-genai, its command line included, then run compiled. The folder no
    longer opens on another platform until `disable_library` undoes it: publish it without.

    Args:
        folder: published folder, or the folder `onnx` in it.

    Returns:
        The copied library.

    Raises:
        UserError: the folder has no genai_config.json, cannot be written to, or there is no compiled library.
    """
    folder = _genai_folder(folder)
    source = ops.ops_library_path()
    target = folder / source.name
    try:
        _replace(target, source.read_bytes())
        _write_library_key(folder, target.name)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error}); nm_export.onnx.genai_model loads without writing."
        ) from error
    return target


def disable_library(folder: str | Path) -> None:
    """Undo `enable_library`: remove the copied library and its name in genai_config.json.

    Raises:
        UserError: the folder has no genai_config.json or cannot be written to.
    """
    folder = _genai_folder(folder)
    try:
        name = _write_library_key(folder, None)
        if name:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error}") from error


def genai_model(model_id: str | Path, *, library: bool | None = None, revision: str | None = None) -> Any:
    """Open a published model as an `onnxruntime_genai.Model`, compiled if it can be, without writing to its folder.

    Args:
        model_id: published folder, or the folder `onnx` in it (links and read-only folders will do), or the name of a
            repository of the Hub.
        library: True insists on the compiled operators, False runs the function bodies, None takes what there is and
            warns when it is the slow one. A graph without operators of this package needs none.
        revision: branch, tag or commit of the repository.

    Raises:
        UserError: no such folder or repository, no genai_config.json, onnxruntime-genai is not installed, or no library
            although it is insisted on.
        NMExportError: onnxruntime-genai refuses the folder.
    """
    require("onnxruntime_genai", "genai")
    import onnxruntime_genai

    folder = _genai_folder(local_folder(model_id, revision=revision))
    config = read_json_object(folder / _CONFIG)
    _check_paths(config, folder / _CONFIG)
    _session_options(config, folder / _CONFIG)
    for name in ("model.onnx", "model.onnx.data"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: copy or download the folder again, or export the model again.")
    source = None
    if library is not False:
        try:
            source = ops.ops_library_path()
        except UserError as error:
            if has_operators(folder / "model.onnx"):
                if library:
                    raise
                warnings.warn(f"N:M operators run as ONNX function bodies, slower than compiled: {error}", stacklevel=2)
    try:
        return onnxruntime_genai.Model(str(_view(folder, source)))
    except Exception as error:  # onnxruntime-genai raises plain RuntimeErrors
        raise NMExportError(f"onnxruntime-genai cannot open {folder}: {error}") from error


def _view(folder: Path, library: Path | None) -> Path:
    """A folder of this process: links to the model's files, the library, and a configuration that names it, or none.

    The tokenizer is read from there whenever one is made, so the folder lives as long as the process.
    """
    view = Path(tempfile.mkdtemp(prefix="nm_export-genai-"))
    atexit.register(shutil.rmtree, view, ignore_errors=True)
    for path in folder.iterdir():
        if path.name == _CONFIG or not path.is_file():
            continue
        try:
            (view / path.name).symlink_to(path.resolve())
        except OSError:  # links need a privilege on Windows
            shutil.copy2(path, view / path.name)
    shutil.copy(folder / _CONFIG, view / _CONFIG)
    if library is not None:
        (view / library.name).unlink(missing_ok=True)
        shutil.copy(library, view / library.name)
    _write_library_key(view, library.name if library else None)
    return view


def _genai_folder(folder: str | Path) -> Path:
    for candidate in (Path(folder), Path(folder) / "onnx"):
        if (candidate / _CONFIG).is_file():
            return candidate
        if (candidate / "model.onnx").is_file():
            raise UserError(
                f"onnxruntime-genai does not run the graph in {candidate}, which the exporter of transformers made; "
                "NMSparseORTModelForCausalLM does."
            )
    raise UserError(f"{folder} has no {_CONFIG}: export the model with ONNX switched on.")


def _write_library_key(folder: Path, name: str | None) -> str | None:
    """Set or remove the library's name in genai_config.json; returns the name it had."""
    config = read_json_object(folder / _CONFIG)
    _check_paths(config, folder / _CONFIG)
    options = _session_options(config, folder / _CONFIG)
    before = options.pop(_KEY, None)
    if name is not None:
        options[_KEY] = name
    if name != before:
        _replace(folder / _CONFIG, json.dumps(config, indent=4).encode())
    return before


def context_length(folder: Path) -> int:
    """Tokens that onnxruntime-genai takes in all, of a folder with genai_config.json.

    Raises:
        UserError: the file is damaged.
    """
    model = read_json_object(folder / _CONFIG).get("model")
    length = model.get("context_length") if isinstance(model, dict) else None
    if not isinstance(length, int):
        raise UserError(f"{folder / _CONFIG} has no model.context_length; export the model again.")
    return length


def _session_options(config: dict[str, Any], origin: Path) -> dict[str, Any]:
    try:
        options = config["model"]["decoder"]["session_options"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{origin} has no model.decoder.session_options; export the model again.") from error
    if not isinstance(options, dict):
        raise UserError(f"{origin}: model.decoder.session_options is no mapping; export the model again.")
    return options


def _check_paths(value: Any, origin: Path) -> None:
    """Raise a UserError where a configuration names a file that is not in its folder."""
    if isinstance(value, dict):
        for key, inner in value.items():
            name = str(inner)
            if key in (_KEY, "filename") and (Path(name).name != name or "\\" in name):
                raise UserError(f"{origin}: {key} is {name[:80]!r}, which is no file of the folder.")
            _check_paths(inner, origin)
    elif isinstance(value, list):
        for inner in value:
            _check_paths(inner, origin)


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a link is replaced, not followed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
