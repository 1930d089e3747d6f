"""What a repository on the Hub holds, where in it to publish, and whether that is allowed."""

from dataclasses import dataclass, field

from huggingface_hub import HfApi, RepoFile
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from nm_export.errors import UserError
from nm_export.publishing.contents import File
from nm_export.publishing.hub_requests import repeated

HUB_FILES = frozenset({".gitattributes", ".gitignore", "LICENSE"})
"""What the Hub puts into repositories, and what a publication leaves there."""

_OURS = "modeling_nm_sparse.py"


@dataclass(frozen=True)
class Destination:
    """Where a model is published, and how.

    Attributes:
        repo_id: `user/name`.
        user: name of the account that publishes.
        revision: branch; it is made when it does not exist.
        private: whether a new repository is private, and an existing one must be.
        create_pr: whether to leave a pull request for somebody to merge.
        overwrite: whether contents that nm-export did not write may be replaced.
        commit_message: message of the commit.
    """

    repo_id: str
    user: str
    revision: str = "main"
    private: bool = False
    create_pr: bool = False
    overwrite: bool = False
    commit_message: str = "Publish a model with N:M activation sparsity"


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub reports it: `sha256` is None for small files, which git keeps itself."""

    size: int
    blob_id: str
    sha256: str | None

    def holds(self, file: File) -> bool:
        """Whether the Hub has these bytes."""
        if self.size != file.size:
            return False
        return self.sha256 == file.sha256 if self.sha256 else self.blob_id == file.blob_id


@dataclass(frozen=True)
class Snapshot:
    """A commit, and its files by path."""

    commit: str
    files: dict[str, RemoteFile] = field(default_factory=dict)


def read_snapshot(api: HfApi, repo_id: str, revision: str) -> Snapshot:
    """Ask the Hub for the newest commit of a revision and its files."""
    commit = repeated(lambda: api.repo_info(repo_id, revision=revision)).sha
    assert commit is not None
    entries = repeated(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=commit)))
    files = {
        entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if isinstance(entry, RepoFile)
    }
    return Snapshot(commit, files)


def check_destination(api: HfApi, destination: Destination) -> None:
    """Look at the repository before any work is done; one that does not exist yet is fine.

    Raises:
        UserError: it holds something else, or is public where a private one is wanted.
    """
    repo_id = destination.repo_id
    try:
        repository = repeated(lambda: api.repo_info(repo_id))
    except RepositoryNotFoundError:
        return
    if destination.private and not repository.private:
        raise UserError(f"{repo_id} is public, not private; change that in its settings, or choose another --repo-id.")
    try:
        snapshot = read_snapshot(api, repo_id, destination.revision)
    except RevisionNotFoundError:
        snapshot = read_snapshot(api, repo_id, "main")  # where the new branch begins
    check_snapshot(snapshot, destination)


def check_snapshot(snapshot: Snapshot, destination: Destination) -> None:
    """Raise a UserError if a publication would replace what nm-export did not write, unless it may."""
    others = sorted(snapshot.files.keys() - HUB_FILES - {"README.md"})
    if not others or _OURS in snapshot.files or destination.overwrite:
        return
    raise UserError(
        f"{destination.repo_id} ({destination.revision}) holds something that nm-export did not write ({others[0]}"
        + (f" and {len(others) - 1} more files" if others[1:] else "")
        + "); choose another --repo-id, or replace it all with --overwrite."
    )


def open_repository(api: HfApi, destination: Destination) -> None:
    """Make the repository and the branch if they do not exist."""
    repo_id, revision = destination.repo_id, destination.revision
    try:
        repeated(lambda: api.repo_info(repo_id))
    except RepositoryNotFoundError:
        repeated(lambda: api.create_repo(repo_id, private=destination.private, exist_ok=True))
    try:
        repeated(lambda: api.repo_info(repo_id, revision=revision))
    except RevisionNotFoundError:
        repeated(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
