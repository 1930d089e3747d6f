"""SHA-256 of what stages read and write: JSON values, files, tensors, and the program itself."""

import functools
import hashlib
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nm_export.errors import UserError
from nm_export.ops import ops_library_path
from nm_export.versions import RECORDED, installed_versions

if TYPE_CHECKING:  # whoever hashes a file need not wait for PyTorch
    from torch import Tensor

_PACKAGE = Path(__file__).parent
_BESIDE_THE_ROAD = (
    "cli.py",
    "words.py",
    "console.py",
    "terminal.py",
    "tables.py",
    "progress.py",
    "quiet.py",
    "dry_run.py",
    "estimates/",
    "summary.py",
    "benchmark/",
    "card/",
    "results/",
)
"""Files that decide nothing of what a stage writes, but for those of a stage that has files of its own."""


def digest(content: Any) -> str:
    """SHA-256 of JSON values; of anything else among them, its text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def tensor_digest(tensor: "Tensor") -> str:
    """SHA-256 of a tensor on the CPU: its dtype, its shape, its numbers."""
    head = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return hashlib.sha256(head + tensor.contiguous().numpy().tobytes()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """The same of a file that is read several times in a run: it is hashed again when it has changed."""
    status = path.stat()
    return _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, *_: int) -> str:
    return file_sha256(path)


@functools.cache
def program_digest(own: str = "none of the others") -> str:
    """SHA-256 of the package's code, its compiled operators and the versions of the libraries that take part.

    Args:
        own: how the paths of files begin that count for one stage only, for example `benchmark/`.
    """
    code = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        name = path.relative_to(_PACKAGE).as_posix()
        if name.startswith(own) or not name.startswith(_BESIDE_THE_ROAD):
            code[name] = file_sha256(path)
    try:
        library = file_sha256(ops_library_path())
    except UserError:
        library = ""
    return digest([code, library, platform.python_version(), installed_versions(RECORDED)])
