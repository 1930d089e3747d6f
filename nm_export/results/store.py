"""What has been measured, one JSON file a row, found again by content."""

import ast
import functools
import json
from pathlib import Path
from typing import Any

import nm_export
from nm_export.digests import digest
from nm_export.whole_file import write_whole

_PACKAGE = Path(nm_export.__file__).parent
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Store:
    """A folder of measurements. A file's name is the row's and the hash of what its model is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, name: str, key: str) -> dict[str, Any]:
        """Return what has been measured of a row so far; an empty dictionary when that is nothing."""
        path = self._path(name, key)
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def save(self, name: str, key: str, measured: dict[str, Any]) -> None:
        """Keep what has been measured of a row, instead of what was there."""
        write_text(self._path(name, key), json.dumps(measured, indent=1, allow_nan=False) + "\n")

    def checkpoints(self, name: str) -> Path:
        """Folder where the learning of a row leaves what it has reached; it stays, for texts that are added later."""
        return self.folder / f"{name}.learning"

    def _path(self, name: str, key: str) -> Path:
        return self.folder / f"{name}-{key[:16]}.json"


@functools.cache
def code_digest(*files: str) -> str:
    """SHA-256 of what Python files of this package do: comments, docstrings and layout do not change it.

    Computed once a process, as the process goes on with the code that it started with.

    Args:
        files: paths relative to the package; `*` matches within a folder.
    """
    parts = []
    for path in sorted({path for pattern in files for path in _PACKAGE.glob(pattern)}):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
        parts.append([path.relative_to(_PACKAGE).as_posix(), ast.dump(tree)])
    return digest(parts)


def write_text(path: Path, text: str) -> None:
    """Write a text file, and its folder where there is none; whole or not at all."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
