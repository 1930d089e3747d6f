"""Write a model folder under a temporary name and give it its final name when it is whole."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nm_export.errors import UserError
from nm_export.whole_file import sync


@contextmanager
def replacing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside `target` that becomes `target` when the block ends well.

    When it does not, the folder is removed and whatever stood at `target` is untouched. Folders that killed runs left
    behind are removed first.

    Args:
        target: folder to write.
        overwrite: whether an existing `target` may be replaced.

    Raises:
        UserError: `target` exists and may not be replaced, or its parent cannot be written.
    """
    check_target(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-{os.getpid()}-", dir=target.parent))
    except OSError as error:
        raise cannot_be_written(target, error) from error
    try:
        yield partial
        move_into_place(partial, target, partial.with_name(f"{partial.name}-old"))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_into_place(folder: Path, target: Path, retired: Path) -> None:
    """Give a finished folder its final name; what was there is called `retired` for a moment, and then removed.

    Whoever finds `retired` and no `target` gives it its name back.

    Args:
        folder: on the disk to the last byte afterwards, and readable as any other.
        target: its name to be.
        retired: a free name on the same file system.
    """
    _make_readable(folder)
    sync((*folder.rglob("*"), folder))
    if target.exists():
        target.rename(retired)
    folder.rename(target)
    sync([target.parent])
    shutil.rmtree(retired, ignore_errors=True)


def cannot_be_written(target: Path, error: OSError) -> UserError:
    """The sentence about a place where nothing can be written."""
    return UserError(f"{target.parent} cannot be written ({error.strerror}); choose another --output-dir.")


def _make_readable(folder: Path) -> None:
    # mkdtemp, and safetensors' own temporary files, are private to their owner; a model folder is not
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise a UserError when `target` is in the way: a file, or a folder that holds something else or must be kept."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file; choose another --output-dir.")
    if not any(target.iterdir()):
        return
    if not (target / "modeling_nm_sparse.py").is_file():
        raise UserError(f"{target} holds something that nm-export did not write; choose another --output-dir.")
    if not overwrite:
        raise UserError(f"{target} holds an exported model; pass --overwrite to replace it.")


def _remove_leftovers(target: Path) -> None:
    pattern = re.compile(rf"\.{re.escape(target.name)}\.partial-(\d+)-\w+?(-old)?")
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if not match or _is_running(int(match[1])):
            continue
        if match[2] and not target.exists():  # killed between two renames: the old model is still the model
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
