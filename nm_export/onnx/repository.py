"""Published models, wherever they are -> a local folder with what ONNX Runtime needs; from there to another place."""

import fnmatch
import shutil
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from nm_export.errors import UserError
from nm_export.library_errors import reason

_SERVED = ["*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*_nm_sparse.py"]
"""Configuration, tokenizer and their code: all that stands beside the graph, but the weights for PyTorch."""
_RECORDS = ["*.index.json", "measurements.json", "nm_export.json", "stages.json", "evaluation*.json"]
"""Of those, what tells of the weights and of the export, and is not needed to run it."""


def local_folder(
    model_id: str | Path,
    *,
    subfolder: str = "onnx",
    revision: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    cache_dir: str | Path | None = None,
    token: bool | str | None = None,
) -> Path:
    """Return a folder as it is, and the local copy of a repository of the Hub.

    Args:
        model_id: folder, or the name of a repository.
        subfolder: where the graph lies within the repository.
        revision: branch, tag or commit of the repository.
        local_files_only: never go to the network.
        force_download: fetch files again that are there already.
        cache_dir: cache of the Hub's files.
        token: for private repositories.

    Raises:
        UserError: there is no such folder or repository.
    """
    if Path(model_id).is_dir():
        return Path(model_id)
    if Path(model_id).exists():
        raise UserError(f"{model_id} is a file: give the folder of the published model.")
    try:
        return Path(
            snapshot_download(
                str(model_id),
                revision=revision,
                local_files_only=local_files_only,
                force_download=force_download,
                cache_dir=cache_dir,
                token=token,
                allow_patterns=[*_SERVED, "recipe.yaml", "onnx/*", f"{subfolder or 'onnx'}/*"],
            )
        )
    except Exception as error:  # the Hub's client raises its own and its HTTP library's exceptions
        raise UserError(
            f"{model_id} is neither a folder nor a repository that can be loaded: {reason(error)}"
        ) from error


def graph_folder(folder: Path, subfolder: str, file_name: str) -> tuple[Path, Path]:
    """Find the graph of a published model; its folder `onnx` is taken for the whole.

    Args:
        folder: the published folder, or the one with the graph.
        subfolder: where the graph lies within the published folder; "" is there or in `onnx`.
        file_name: the graph's file.

    Returns:
        The published folder, and the path of the graph (of which nobody has seen whether it exists).

    Raises:
        UserError: there is a graph, but no configuration that belongs to it.
    """
    path = folder / subfolder / file_name
    if not path.is_file():
        path = next((p for p in (folder / file_name, folder / "onnx" / file_name) if p.is_file()), path)
    for place in (folder, path.parent, path.parent.parent, folder.absolute().parent):
        if (place / "config.json").is_file():
            return place, path
    if path.is_file():
        raise UserError(f"{folder} has no config.json: give the folder of the published model, not its onnx folder.")
    return folder, path


def copy_model(folder: Path, graph: Path, target: Path, *, everything: bool = False) -> None:
    """Copy a published model, with real files in place of links; onto itself: do nothing.

    Args:
        folder: the published folder.
        graph: its graph.
        target: folder to copy to; files of the same names are replaced.
        everything: all files rather than those that ONNX Runtime, onnxruntime-genai and the tokenizer need.

    Raises:
        UserError: `target` is a file.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: give a folder to save to.")
    if target.resolve() == folder.resolve():
        return
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and (everything or path.parent == graph.parent or _is_served(name)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)


def _is_served(name: str) -> bool:
    if "/" in name and not name.startswith("additional_chat_templates/"):
        return False
    return any(fnmatch.fnmatch(name, p) for p in _SERVED) and not any(fnmatch.fnmatch(name, p) for p in _RECORDS)


def upload_folder(folder: Path, repository: str, *, private: bool | None, token: bool | str | None) -> str:
    """Upload a folder as it is to a repository of the Hub; returns the address of the commit.

    Raises:
        UserError: there is no such folder, or the Hub does not take it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: save the model there first.")
    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder).commit_url)
    except Exception as error:  # the Hub's client raises its own and its HTTP library's exceptions
        raise UserError(f"{folder} cannot be uploaded to {repository}: {reason(error)}") from error
