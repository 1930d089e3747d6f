"""Bring a revision of a repository to given contents, so that its branch moves once.

A few files make one commit. Many make several, on the branch of a pull request that is compared and merged when all
are there. Whatever stops the upload, the next one sends what is missing: the Hub keeps files that have arrived, even
before a commit names them, and an unfinished pull request is found again by its title.
"""

import hashlib
import itertools
import logging
from dataclasses import dataclass

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from nm_export.publishing.contents import File
from nm_export.publishing.hub_requests import CONFLICTS, PAUSES, repeated, status
from nm_export.publishing.received import check_received, surplus
from nm_export.publishing.repository import Destination, Snapshot, check_snapshot, read_snapshot

FILES_PER_COMMIT = 100
"""The Hub's own advice for one commit."""

_ATTEMPTS = 3  # against others who commit to the branch at the same time
_OPEN = ("draft", "open")
_SEARCHED = 200  # pull requests that are looked through for an unfinished one, newest first

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Changes:
    """What a snapshot lacks.

    Attributes:
        sent: paths that are added or replaced, in order.
        deleted: paths that are deleted, in order.
    """

    sent: tuple[str, ...]
    deleted: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.sent or self.deleted)


@dataclass(frozen=True)
class Upload:
    """What an upload did.

    Attributes:
        commit: id of the commit that holds the contents.
        changes: what it changed on the branch.
        pull_request: number of a pull request that is left to be merged, or None.
    """

    commit: str
    changes: Changes
    pull_request: int | None = None


def upload(api: HfApi, contents: dict[str, File], destination: Destination) -> Upload:
    """Make the branch of an existing repository hold `contents`, or open the pull request that does.

    When the branch moves in the meantime, what to change is worked out again. So is it when the answer to a commit got
    lost: then the branch holds the contents, and nothing is left to change.

    Raises:
        UserError: the branch holds something that may not be replaced.
        NMExportError: the Hub holds other bytes than were sent.
        Exception: what huggingface_hub raises when it fails for good.
    """
    for attempt in itertools.count(1):
        head = read_snapshot(api, destination.repo_id, destination.revision)
        check_snapshot(head, destination)
        changes = _changes(contents, head)
        if not changes:
            return Upload(head.commit, changes)
        try:
            if destination.create_pr or len(changes.sent) + len(changes.deleted) > FILES_PER_COMMIT:
                return _through_pull_request(api, contents, destination, head, changes)
            commit = _commit(api, contents, destination, changes, destination.revision, head.commit)
            return Upload(commit.oid, changes)
        except Exception as error:
            if status(error) not in CONFLICTS or attempt == _ATTEMPTS:
                raise
            logger.info("%s changed during the upload; looking again.", destination.repo_id)
    raise AssertionError


def _changes(contents: dict[str, File], snapshot: Snapshot) -> Changes:
    sent = [
        path for path, file in contents.items() if path not in snapshot.files or not snapshot.files[path].holds(file)
    ]
    return Changes(tuple(sent), surplus(contents, snapshot))


def _commit(
    api: HfApi,
    contents: dict[str, File],
    destination: Destination,
    changes: Changes,
    revision: str,
    parent: str,
    *,
    title: str | None = None,
) -> CommitInfo:
    """Send files and make one commit after `parent`, or fail when `revision` has moved on; a title opens a request."""
    additions = [_addition(path, contents[path]) for path in changes.sent]
    deletions = [CommitOperationDelete(path, is_folder=False) for path in changes.deleted]
    # .gitignore files of the repository are for people; a publication is complete or fails
    repeated(
        lambda: api.preupload_lfs_files(
            destination.repo_id,
            additions,
            revision=revision,
            create_pr=title is not None,
            free_memory=False,
            gitignore_content="",
        ),
        pauses=PAUSES[:1],  # huggingface_hub has repeated each request of this already
    )
    return repeated(
        lambda: api.create_commit(
            destination.repo_id,
            [*deletions, *additions],
            commit_message=title or destination.commit_message,
            revision=revision,
            parent_commit=parent,
            create_pr=title is not None,
        ),
        pauses=() if title else PAUSES,  # asked twice, the Hub would open two pull requests
    )


def _addition(path: str, file: File) -> CommitOperationAdd:
    addition = CommitOperationAdd(path, file.source)
    addition.upload_info.sha256 = bytes.fromhex(file.sha256)  # known already: the file need not be read for it again
    return addition


def _through_pull_request(
    api: HfApi, contents: dict[str, File], destination: Destination, head: Snapshot, changes: Changes
) -> Upload:
    repo_id = destination.repo_id
    title = f"{destination.commit_message} [{_fingerprint(contents, head)}]"

    def find_or_open() -> int:
        number = _unfinished(api, destination, title)  # also the one whose announcement got lost
        if number is None:
            revision = destination.revision
            part = _part(changes)
            number = _commit(api, contents, destination, part, revision, head.commit, title=title).pr_num
        assert number is not None
        return number

    number = repeated(find_or_open)
    branch = f"refs/pr/{number}"
    state = read_snapshot(api, repo_id, branch)
    missing = _changes(contents, state)
    while missing:
        _commit(api, contents, destination, _part(missing), branch, state.commit)
        state = read_snapshot(api, repo_id, branch)
        before, missing = missing, _changes(contents, state)
        if missing == before:  # the Hub takes no more; the comparison says what is not there
            break
    check_received(api, contents, repo_id, branch)
    if _pull_request_status(api, repo_id, number) == "draft":
        repeated(lambda: api.change_discussion_status(repo_id, number, "open"))
    if destination.create_pr:
        return Upload(state.commit, changes, pull_request=number)
    _merge(api, repo_id, number)
    return Upload(read_snapshot(api, repo_id, destination.revision).commit, changes)


def _part(changes: Changes) -> Changes:
    """The changes of the next commit."""
    later = changes.sent[FILES_PER_COMMIT:]
    return Changes(changes.sent[:FILES_PER_COMMIT], () if later else changes.deleted)


def _merge(api: HfApi, repo_id: str, number: int) -> None:
    try:
        repeated(lambda: api.merge_pull_request(repo_id, number))
    except Exception as error:
        if _pull_request_status(api, repo_id, number) == "merged":  # only the answer got lost
            return
        if status(error) in CONFLICTS:  # the branch has moved; another pull request will start from there
            repeated(lambda: api.change_discussion_status(repo_id, number, "closed"))
        raise


def _unfinished(api: HfApi, destination: Destination, title: str) -> int | None:
    """The number of the pull request that an interrupted upload of the same contents has left, or None.

    Only of the same account: nobody else may slip commits into a publication.
    """

    def search() -> int | None:
        found = api.get_repo_discussions(destination.repo_id, discussion_type="pull_request")
        for request in itertools.islice(found, _SEARCHED):
            if request.title == title and request.status in _OPEN and request.author == destination.user:
                return request.num
        return None

    return repeated(search)


def _pull_request_status(api: HfApi, repo_id: str, number: int) -> str:
    return repeated(lambda: api.get_discussion_details(repo_id, number)).status


def _fingerprint(contents: dict[str, File], head: Snapshot) -> str:
    text = head.commit + "".join(f"{path}\0{file.sha256}\n" for path, file in contents.items())
    return hashlib.sha256(text.encode()).hexdigest()[:12]
