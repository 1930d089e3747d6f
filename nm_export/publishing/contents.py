"""What of an exported folder is published, and whether it may be."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nm_export import modeling
from nm_export.card.marks import read_card
from nm_export.card.naming import named_in, renamed
from nm_export.card.write import CARD, REPORT
from nm_export.errors import UserError
from nm_export.progress import track
from nm_export.versions import installed_versions

_LIBRARIES = (".so", ".dylib", ".dll")


@dataclass(frozen=True, eq=False)
class File:
    """A file as it is published: the bytes of `source`, or those at that path."""

    source: Path | bytes

    @cached_property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """By which the Hub knows large files."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        with self.source.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """By which git knows small files."""
        content = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_contents(folder: Path, repo_id: str) -> dict[str, File]:
    """Return the files of an exported folder by their path in the repository, in order.

    The card's lines that load the model name the repository instead of the folder. Hidden files stay at home.

    Raises:
        UserError: a link, which may lead anywhere; or a card whose metadata are no valid YAML.
    """
    contents = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") or part == "__pycache__" for part in name.parts):
            continue
        if path.is_symlink():
            raise UserError(f"{path} is a link; publish a folder that holds its files.")
        if path.is_file():
            contents[name.as_posix()] = File(path)
    pages = {page: (folder / page).read_text(encoding="utf-8") for page in (CARD, REPORT) if page in contents}
    card = pages.get(CARD)
    named = named_in(pages.get(REPORT, "")) if card is None else read_card(card, str(folder / CARD)).loaded_from
    if named is not None:
        contents |= {page: File(renamed(text, named, repo_id).encode()) for page, text in pages.items()}
    return contents


def hash_contents(contents: dict[str, File]) -> None:
    """Read every file once for its hash, and show the progress."""
    for file in track(contents.values(), "Hashing", total=len(contents)):
        _ = file.sha256


def check_verified(folder: Path) -> None:
    """Raise a UserError unless an export wrote `folder` and its measurements say that verification passed."""
    if not (folder / "modeling_nm_sparse.py").is_file():
        raise UserError(f"{folder} holds no exported model; give a folder that nm-export wrote.")
    try:
        numbers = json.loads((folder / "measurements.json").read_text(encoding="utf-8"))
        report = numbers["verification"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{folder / 'measurements.json'} cannot be read ({type(error).__name__}: {error}); export the model again."
        ) from error
    if not report:
        raise UserError(
            f"{folder} has not been verified since its last export, and nothing is published unverified; "
            f"run `nm-export verify {folder}` first."
        )
    wanted = ["reloaded"]
    if any((folder / "onnx").glob("*.onnx")):
        wanted.append("onnx")
    if not _passed(report, wanted):
        raise UserError(
            f"{folder / 'measurements.json'} does not say that verification passed; export the model again."
        )
    if any(path.suffix in _LIBRARIES for path in folder.rglob("*")):
        raise UserError(
            f"{folder} holds this platform's compiled kernel and opens nowhere else; "
            f"run `nm-export enable-genai {folder} --off` first."
        )


def check_code(folder: Path, contents: dict[str, File]) -> None:
    """Raise a UserError unless the code among the folder's contents, which readers run, is this package's."""
    ours = {path.name: File(path) for path in Path(modeling.__file__).parent.glob("*_nm_sparse.py")}
    for name, file in contents.items():
        if not name.endswith(".py"):
            continue
        if name not in ours:
            raise UserError(f"{folder / name} is no file of an export, and no other code is published; remove it.")
        if file.sha256 != ours[name].sha256:
            version = installed_versions(["nm_export"]).get("nm_export", "a checkout")
            raise UserError(
                f"{folder / name} is not the code of this nm_export ({version}): it was changed, or another version "
                "wrote it. Export the model again, or publish it with the version that wrote it."
            )


def _passed(report: Any, wanted: list[str]) -> bool:
    try:
        checks = report["modules"]
        return (
            report["reloaded_logits_equal"] is True
            and all(check["kept_channels_equal"] is True for check in checks.values())
            and all(any(backend.startswith(name) for backend in checks) for name in wanted)
        )
    except (TypeError, KeyError, AttributeError):
        return False
