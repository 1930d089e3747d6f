"""One run at a time into a folder: a lock of the operating system, which ends with the process that holds it."""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nm_export.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Keep other runs away from `target` while the block runs, by a lock on `.<name>.lock` beside it.

    On a file system that has no locks the user is told, and the block runs all the same.

    Raises:
        UserError: another run holds the lock.
        OSError: the file cannot be made.
    """
    path = target.with_name(f".{target.name}.lock")
    descriptor = _open_locked(path, target)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: whoever has it open finds out that it is no longer the file
        os.close(descriptor)


def _open_locked(path: Path, target: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no flock")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise UserError(
                f"another run ({holder}) is writing {target}; wait for its end, or choose another --output-dir."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            logger.warning(
                "%s is on a file system without locks: see to it that no other run writes %s.", path.parent, target.name
            )
            return descriptor
        os.close(descriptor)  # its holder has just removed it
