"""Files that appear whole or not at all, and stay when the power goes."""

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file into an existing folder under another name, and give it its own when it is on the disk."""
    descriptor, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.partial-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp's files are readable by their owner only
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync([path.absolute().parent])


def sync(paths: Iterable[Path]) -> None:
    """Wait until files and folders are on the disk; where a folder cannot be waited for, the system does as it does."""
    for path in paths:
        with contextlib.ExitStack() as stack:
            if path.is_dir():  # Windows opens no folders, and some network file systems do not write them on demand
                stack.enter_context(contextlib.suppress(OSError))
            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            os.fsync(descriptor)
