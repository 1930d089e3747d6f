"""Published models, wherever they are -> a local folder with what ONNX Runtime needs."""

from pathlib import Path

from huggingface_hub import snapshot_download

from nm_export.errors import UserError

_DOWNLOADED = ["*.json", "*.jinja", "*.model", "*.txt", "onnx/*"]  # all but the torch weights


def local_folder(
    model_id: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    token: bool | str | None = None,
) -> Path:
    """Return a folder as it is, and the local copy of a repository of the Hub.

    Args:
        model_id: folder, or the name of a repository.
        revision: branch, tag or commit of the repository.
        local_files_only: never go to the network.
        cache_dir: cache of the Hub's files.
        token: for private repositories.

    Raises:
        UserError: there is no such folder or repository.
    """
    if Path(model_id).is_dir():
        return Path(model_id)
    try:
        return Path(
            snapshot_download(
                str(model_id),
                revision=revision,
                local_files_only=local_files_only,
                cache_dir=cache_dir,
                token=token,
                allow_patterns=_DOWNLOADED,
            )
        )
    except Exception as error:  # the Hub's client raises its own and its HTTP library's exceptions
        raise UserError(f"{model_id} is neither a folder nor a repository that can be loaded: {error}") from error
