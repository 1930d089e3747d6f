"""Publish a verified folder on the Hugging Face Hub: check the way first, upload, read back."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from nm_export.errors import UserError
from nm_export.publishing.base_on_hub import check_base
from nm_export.publishing.base_weights import base_weights_of
from nm_export.publishing.completeness import check_hashes, check_whole
from nm_export.publishing.contents import check_code, check_verified, hash_contents, read_contents
from nm_export.publishing.hub_requests import PAUSES, bounded_waits, explained, reason, repeated
from nm_export.publishing.received import check_received
from nm_export.publishing.repository import Destination, check_destination, open_repository
from nm_export.publishing.upload import upload
from nm_export.recipe import PublishSection
from nm_export.sizes import size_in_words

_HOW = PublishSection.model_fields.keys() - {"repo_id"}


@dataclass(frozen=True)
class Publication:
    """What the Hub holds now.

    Attributes:
        repo_id: `user/name`.
        revision: branch, or the branch of the open pull request.
        page: address of the model's page, or of the open pull request.
        url: address of the commit, or of the open pull request.
        sent: number of files that were new or different.
        present: number of files that were there already.
        deleted: files of the earlier publication that this one does not have.
        size: bytes of all files together.
        onnx: bytes of those of the ONNX model.
    """

    repo_id: str
    revision: str
    page: str
    url: str
    sent: int
    present: int
    deleted: tuple[str, ...]
    size: int
    onnx: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield Text(f"{self}", no_wrap=True, overflow="ignore")  # an address is not broken

    def __str__(self) -> str:
        size = size_in_words(self.size) + (f", {size_in_words(self.onnx)} of them ONNX" if self.onnx else "")
        if not self.sent and not self.deleted:
            return f"{self.page} (all {self.present} files were there already; read back, equal; {size})"
        parts = [f"{self.sent} files sent"]
        if self.present:
            parts.append(f"{self.present} were there already")
        if self.deleted:
            parts.append(f"{len(self.deleted)} of the earlier publication deleted ({', '.join(self.deleted[:3])})")
        return f"{self.page} ({', '.join(parts)}; read back, equal; {size})"


def find_destination(settings: PublishSection) -> Destination:
    """Return where to publish, after asking the Hub who is logged in and what is there.

    Called before any work is done, so that a missing token or a repository that holds something else is not found out
    after an hour.

    Args:
        settings: of `publish_settings`; `name` alone is a repository of the account that is logged in.

    Raises:
        UserError: nobody is logged in, the token is refused or can only read, the Hub is out of reach, or the
            repository may not be written to.
        NMExportError: the Hub failed.
    """
    name = settings.repo_id
    assert name is not None
    with bounded_waits(), explained(name, "run the command again"):
        api = HfApi()
        user = _whoami(api)
        how = {field.name: getattr(settings, field.name) for field in fields(Destination) if field.name in _HOW}
        destination = Destination(name if "/" in name else f"{user}/{name}", user, **how)
        check_destination(api, destination)
    return destination


def check_publishable(folder: Path) -> None:
    """Raise a UserError unless an export wrote and verified `folder`, and all of it is there; takes about a second."""
    check_verified(folder)
    check_whole(folder)


def push(folder: Path, destination: Destination) -> Publication:
    """Upload a verified folder, so that the branch moves once, and read back what the Hub holds.

    Files that the Hub has by their hash are not sent. Files of an earlier publication that `folder` does not have are
    deleted in the same commit. Calling it again after a failure continues.

    Args:
        folder: a folder that an export wrote and verified.
        destination: where to.

    Raises:
        UserError: the folder was not verified, is not whole or holds other code than this package's, or the Hub does
            not let this account write there.
        NMExportError: the Hub refused, the connection broke, or the Hub holds other bytes than were sent. The local
            folder is untouched.
    """
    check_publishable(folder)
    repo_id = destination.repo_id
    again = f"continue with `{command(folder, destination)}`"
    base = base_weights_of(folder)
    if base is not None:
        with bounded_waits(), explained(base.get("repo_id", repo_id), again):
            check_base(HfApi(), base, destination)
    contents = read_contents(folder, repo_id)
    check_code(folder, contents)
    hash_contents(contents)
    check_hashes(folder, contents)
    with bounded_waits(), explained(repo_id, again):
        api = HfApi()
        open_repository(api, destination)
        done = upload(api, contents, destination)
        revision = destination.revision if done.pull_request is None else f"refs/pr/{done.pull_request}"
        check_received(api, contents, repo_id, revision)
    place = f"discussions/{done.pull_request}" if done.pull_request else f"commit/{done.commit}"
    sent, url = len(done.changes.sent), f"{api.endpoint}/{repo_id}"
    branch = "" if revision == "main" else f"/tree/{quote(revision)}"
    return Publication(
        repo_id,
        revision,
        page=f"{url}/{place}" if done.pull_request else f"{url}{branch}",
        url=f"{url}/{place}",
        sent=sent,
        present=len(contents) - sent,
        deleted=done.changes.deleted,
        size=sum(file.size for file in contents.values()),
        onnx=sum(file.size for path, file in contents.items() if path.startswith("onnx/")),
    )


def command(folder: Path, destination: Destination) -> str:
    """The command line that publishes `folder` there."""
    words = ["nm-export", "publish", str(folder), "--repo-id", destination.repo_id]
    if destination.revision != "main":
        words += ["--revision", destination.revision]
    words += [
        option
        for option, wanted in (
            ("--private", destination.private),
            ("--create-pr", destination.create_pr),
            ("--overwrite", destination.overwrite),
        )
        if wanted
    ]
    return shlex.join(words)


def _whoami(api: HfApi) -> str:
    try:
        account = repeated(api.whoami, pauses=PAUSES[:2])
    except LocalTokenNotFoundError as error:
        raise UserError("Publishing needs a Hugging Face token: run `hf auth login` or set HF_TOKEN.") from error
    except HfHubHTTPError:
        raise
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set, and publishing needs the Hugging Face Hub; unset it.") from error
    except Exception as error:  # of the HTTP library, which differs between versions of huggingface_hub
        raise UserError(
            f"Publishing cannot reach the Hugging Face Hub ({reason(error)}); check the network."
        ) from error
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError("The token can only read; make one with write access, and run `hf auth login`.")
    return str(account["name"])
