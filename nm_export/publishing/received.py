"""After an upload: does the Hub hold what was sent?"""

import tempfile
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_url

from nm_export.errors import NMExportError
from nm_export.publishing.contents import File
from nm_export.publishing.hub_requests import repeated
from nm_export.publishing.repository import HUB_FILES, Snapshot, read_snapshot

_CONFIG = "config.json"


def check_received(api: HfApi, contents: dict[str, File], repo_id: str, revision: str) -> None:
    """Compare a revision with what it should hold.

    Of every file the hash in the Hub's list; of the largest safetensors file and the largest file of the ONNX model
    also the hash that the Hub announces to whoever loads it; config.json is downloaded.

    Raises:
        NMExportError: a file is missing, left over or different.
    """
    snapshot = read_snapshot(api, repo_id, revision)
    wrong = [path for path, file in contents.items() if path in snapshot.files and not snapshot.files[path].holds(file)]
    missing = [path for path in contents if path not in snapshot.files]
    if not wrong and not missing:
        wrong += [path for path in _large(contents) if not _announced(api, contents[path], path, snapshot, repo_id)]
        wrong += [path for path in (_CONFIG,) if _downloaded(api, repo_id, path, snapshot) != contents[path].blob_id]
    left_over = surplus(contents, snapshot)
    for paths, what in ((wrong, "differs from what was sent"), (missing, "is missing"), (left_over, "is left over")):
        if paths:
            more = f" (and {len(paths) - 1} more files)" if paths[1:] else ""
            raise NMExportError(
                f"{paths[0]}{more} {what} in {repo_id} at commit {snapshot.commit[:12]}: do not use that commit; "
                "publish the folder again, which sends what differs."
            )


def surplus(contents: dict[str, File], snapshot: Snapshot) -> tuple[str, ...]:
    """Paths that a snapshot has and `contents` has not, but for those that the Hub puts there itself."""
    return tuple(sorted(snapshot.files.keys() - contents.keys() - HUB_FILES))


def _large(contents: dict[str, File]) -> list[str]:
    kinds = (
        [path for path in contents if path.endswith(".safetensors")],
        [path for path in contents if path.startswith("onnx/")],
    )
    return [max(paths, key=lambda path: contents[path].size) for paths in kinds if paths]


def _announced(api: HfApi, file: File, path: str, snapshot: Snapshot, repo_id: str) -> bool:
    url = hf_hub_url(repo_id, path, revision=snapshot.commit, endpoint=api.endpoint)
    return repeated(lambda: api.get_hf_file_metadata(url=url)).etag in (file.sha256, file.blob_id)


def _downloaded(api: HfApi, repo_id: str, path: str, snapshot: Snapshot) -> str:
    """The git hash of a file as an empty cache receives it."""
    with tempfile.TemporaryDirectory(prefix="nm_export-received-") as cache:
        received = repeated(lambda: api.hf_hub_download(repo_id, path, revision=snapshot.commit, cache_dir=cache))
        return File(Path(received)).blob_id
