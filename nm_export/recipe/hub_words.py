"""Words that the Hugging Face Hub understands: names of repositories, licences, languages."""

import re

_PART = re.compile(r"\w(?:[\w.-]{0,94}\w)?", re.ASCII)
_LICENSE = re.compile(r"[a-z0-9](?:[a-z0-9.+-]*[a-z0-9+])?")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


def check_repo_id(repo_id: str) -> str:
    """Return `user/name` or `name` as it is. Raises ValueError for what the Hub and its client refuse as a name."""
    parts = repo_id.split("/")
    forbidden = next((letters for letters in ("--", "..") if letters in repo_id), None)
    if len(parts) > 2:
        raise ValueError(f"{repo_id!r} is not a repository name; write user/name")
    if forbidden:
        raise ValueError(f"{repo_id!r} is not a repository name, since it holds {forbidden!r}; write user/name")
    if repo_id.endswith(".git"):
        raise ValueError(f"{repo_id!r} is not a repository name, since it ends in '.git'; write user/name")
    if not all(_PART.fullmatch(part) for part in parts):
        raise ValueError(
            f"{repo_id!r} is not a repository name; write user/name with letters from a to z, digits, - _ and ., "
            "neither - nor . first or last, at most 96 of them"
        )
    return repo_id


def check_model_id(model_id: str) -> str:
    """Return `user/name` as it is. Raises ValueError for anything else."""
    if model_id.count("/") != 1:
        raise ValueError(f"{model_id!r} is not a model of the Hub; write user/name, for example Qwen/Qwen2-0.5B")
    return check_repo_id(model_id)


def check_license(identifier: str) -> str:
    """Return the Hub's identifier of a licence as it is. Raises ValueError if it cannot be one."""
    if not _LICENSE.fullmatch(identifier):
        raise ValueError(
            f"{identifier!r} is not the Hub's identifier of a licence; write for example apache-2.0, mit or cc-by-4.0, "
            "or other with license_name and license_link"
        )
    return identifier


def check_language(code: str) -> str:
    """Return the code of a language as it is. Raises ValueError if it cannot be one."""
    if not _LANGUAGE.fullmatch(code):
        raise ValueError(f"{code!r} is not the code of a language; write two or three letters, for example en or de")
    return code
