"""Before a model is published that leaves weights to its base model: will readers find these weights?"""

import logging
from collections.abc import Mapping
from typing import Any

from huggingface_hub import HfApi, RepoFile
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from nm_export.errors import UserError
from nm_export.publishing.hub_requests import repeated
from nm_export.publishing.repository import Destination

logger = logging.getLogger(__name__)


def check_place(base: Mapping[str, Any], repo_id: str) -> None:
    """Raise a UserError when the base model is a folder of this machine.

    Args:
        base: `base_weights` of a `config.json`.
        repo_id: repository to publish to.
    """
    if "folder" in base:
        raise UserError(
            f"What is published as {repo_id} would leave its weights to the folder {base['folder']}, which its readers "
            "do not have; export with publish.weights: full, and if that model is on the Hub, name it with "
            "`nm-export convert FOLDER OUTPUT --weights reference --base ID`."
        )


def check_base(api: HfApi, base: Mapping[str, Any], destination: Destination) -> None:
    """Ask the Hub whether the base model's repository holds the files that a folder names, under the same hashes.

    Raises:
        UserError: it does not.
    """
    check_place(base, destination.repo_id)
    repo_id, revision, files = base["repo_id"], base["revision"], base["files"]
    try:
        private = repeated(lambda: api.repo_info(repo_id, revision=revision)).private
        found = repeated(lambda: api.get_paths_info(repo_id, list(files), revision=revision))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"The base model {repo_id} at {revision} is not on the Hub, or hidden, and {destination.repo_id} leaves "
            "its weights there; publish the model in full (`nm-export convert FOLDER OUTPUT --weights full`)."
        ) from error
    there = {entry.path: entry for entry in found if isinstance(entry, RepoFile)}
    for name, file in files.items():
        entry = there.get(name)
        sha256 = entry.lfs.sha256 if entry and entry.lfs else file["sha256"]  # small files have no SHA-256 there
        if entry is None or entry.size != file["size"] or sha256 != file["sha256"]:
            what = "has no" if entry is None else "has another"
            raise UserError(
                f"The base model {repo_id} at {revision} {what} {name}, to which {destination.repo_id} leaves weights; "
                "convert the model again, or publish it in full."
            )
    if private and not destination.private:
        logger.warning("%s is private: only those who may read it can load %s.", repo_id, destination.repo_id)
