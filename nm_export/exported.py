"""Where a user's word for an exported model leads: a folder, or a repository of the Hub that is fetched.

The first look imports nothing heavy, so that a wrong folder is noticed at once.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nm_export.errors import UserError
from nm_export.json_files import read_json_object

if TYPE_CHECKING:
    from nm_export.recipe import ModelSection

Parts = Literal["all", "torch", "onnx"]
MODEL_TYPE = "nm_sparse"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def check_exported(place: str | Path, *, name_will_do: bool = False, doing: str = "this") -> None:
    """Look whether `place` is a folder that an export wrote; nothing of the Hub is asked.

    Args:
        place: a folder.
        name_will_do: whether the name of a repository is as good.
        doing: what needs a folder, for messages.

    Raises:
        UserError: it is not.
    """
    if not Path(place).is_dir() and is_repository(place):
        if name_will_do:
            return
        raise UserError(
            f"there is no folder {place} here, and {doing} needs one; of a repository, fetch a copy first: "
            f"hf download {place} --local-dir FOLDER"
        )
    folder = Path(place)
    if not folder.exists():
        either = "folder, nor is it a repository of the Hub (user/name)" if name_will_do else "folder"
        raise UserError(f"{place} is no {either}; give a folder that nm-export wrote.")
    if not folder.is_dir():
        raise UserError(f"{place} is a file; give a folder that nm-export wrote.")
    kind = model_type(folder)
    if kind is None:
        raise UserError(f"{folder} holds no exported model; give a folder that nm-export wrote.")
    if kind != MODEL_TYPE:
        raise UserError(f"{folder} holds a {kind} model, not one that nm-export wrote.")


def model_type(folder: Path) -> str | None:
    """What a folder's config.json calls its model; None where there is no such file. Raises UserError: damaged."""
    try:
        return str(read_json_object(folder / "config.json").get("model_type"))[:80]
    except FileNotFoundError:
        return None


def check_model(place: str) -> None:
    """Look whether `place` may be a model, exported or not; nothing of the Hub is asked.

    Raises:
        UserError: it is a folder without one, or nothing that a model can be.
    """
    from nm_export.recipe import ModelSection
    from nm_export.sources.folder_files import check_no_adapter
    from nm_export.sources.locate import resolve_source

    if not place.strip():
        raise UserError("name a model: a folder, a .gguf file or a Hub id")
    try:
        located = resolve_source(ModelSection(source=place))
    except UserError as error:
        raise type(error)(str(error).removeprefix("model.source: ")) from error
    if located.kind != "folder" or located.path is None:
        return
    check_no_adapter(located.path, located.describe())
    if model_type(located.path) is None:
        raise UserError(f"{located.describe()} has no config.json; it is no Hugging Face model")


def is_repository(place: str | Path) -> bool:
    """Whether a word that names no folder may be a repository with exported models: these have an owner."""
    word = place if isinstance(place, str) else place.as_posix()
    return bool(_REPOSITORY.fullmatch(word)) and not Path(word).parent.is_dir()


def find_exported(place: str | Path, parts: Parts = "all") -> Path:
    """Return the folder of an exported model: `place` itself, or the local copy of that repository of the Hub.

    Args:
        place: folder, or `user/name`.
        parts: what of a repository is fetched: `torch` leaves out the ONNX model, `onnx` the weights of PyTorch.

    Raises:
        UserError: there is no such folder or repository, or it holds no exported model.
    """
    check_exported(place, name_will_do=True)
    if Path(place).is_dir():
        return Path(place)
    from nm_export.recipe import ModelSection
    from nm_export.sources.hub import fetch_config

    name = place if isinstance(place, str) else place.as_posix()
    section = ModelSection(source=name)
    try:
        check_exported(fetch_config(section))  # before gigabytes are fetched
        return _fetch(section, parts)
    except UserError as error:
        # the sources speak of the recipe's field, which this user never wrote
        raise type(error)(str(error).removeprefix("model.source: ")) from error


def _fetch(section: "ModelSection", parts: Parts) -> Path:
    from nm_export.onnx.repository import local_folder
    from nm_export.sources.hub import fetch_model

    if parts == "torch":
        return fetch_model(section)
    if parts == "all":
        fetch_model(section)  # into the same folder
    return local_folder(section.source)
