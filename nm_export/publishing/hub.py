"""Upload a verified folder to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from nm_export.errors import NMExportError, UserError


def resolve_repo_id(repo_id: str | None, default_name: str) -> str:
    """Return the full id `user/name` to publish to, asking the Hub who is logged in.

    Called before any work is done, so that a missing token is not found out after an hour.

    Args:
        repo_id: `user/name`, `name` or None.
        default_name: name to use when there is none.

    Raises:
        UserError: nobody is logged in, the token is refused, or the Hub is out of reach.
    """
    try:
        user = HfApi().whoami()["name"]
    except LocalTokenNotFoundError as error:
        raise UserError("--push-to-hub needs a Hugging Face token: run `hf auth login` or set HF_TOKEN.") from error
    except HfHubHTTPError as error:
        raise UserError(f"The Hugging Face Hub refuses the token ({_reason(error)}); run `hf auth login`.") from error
    except Exception as error:  # of the HTTP library, which differs between versions of huggingface_hub
        raise UserError(
            f"--push-to-hub cannot reach the Hugging Face Hub ({_reason(error)}); check the network."
        ) from error
    name = repo_id or default_name
    return name if "/" in name else f"{user}/{name}"


def push(folder: Path, repo_id: str, *, private: bool, commit_message: str) -> str:
    """Upload `folder` as one commit and return the commit's address.

    Args:
        folder: a verified model folder.
        repo_id: `user/name`; created when it does not exist.
        private: whether a new repository is private.
        commit_message: message of the commit.

    Raises:
        NMExportError: the Hub refused or the connection broke; the local folder is untouched.
    """
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    except Exception as error:  # as above
        raise NMExportError(
            f"The upload to {repo_id} failed ({_reason(error)}); {folder} is complete, run the command again."
        ) from error
    return str(commit.commit_url)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
