"""What commands show: results, and exceptions as one sentence with an exit code."""

import errno
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.markup import escape

from nm_export.errors import NMExportError
from nm_export.interruption import Interrupted, current_sentence, ending_promptly
from nm_export.quiet import no_foreign_bars
from nm_export.terminal import console, write_every_character

EXIT_INTERRUPTED = 130

_STORAGE_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
}


def show(result: object) -> None:
    """Show what a call returned: a rich renderable as such, anything else as its text."""
    if result is None:
        return
    if hasattr(result, "__rich__") or hasattr(result, "__rich_console__"):
        console().print(result, crop=False)  # code to copy may be wider than the window
    else:
        print(result)


@contextmanager
def explained(verbose: bool) -> Iterator[None]:
    """Run a command's body; if it stops, say why in one sentence on stderr and exit with the matching code."""
    write_every_character()
    no_foreign_bars()
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("nm_export").setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        with ending_promptly():
            yield
    except Interrupted as interruption:
        fail(interruption.sentence, interruption.exit_code)
    except KeyboardInterrupt:
        fail(current_sentence(), EXIT_INTERRUPTED)
    except NMExportError as error:
        fail(str(error), error.exit_code, verbose)
    except MemoryError:
        fail("there is not enough memory; smaller batches and shorter sequences need less", 2, verbose)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:  # the reader of our output went away
            raise
        storage = _storage_sentence(error)
        if storage is not None:
            fail(storage, 2, verbose)
        reason = " ".join(str(error).split())
        fail(f"{type(error).__name__}: {reason}; this is a bug, run with -v for the traceback", 1, verbose)


def fail(message: str, exit_code: int, verbose: bool = False) -> NoReturn:
    """Say what is wrong, with the traceback of the error that is handled where `verbose`, and end the process."""
    if verbose:
        traceback.print_exc()
    console(stderr=True).print(f"[bold red]error:[/bold red] {escape(message)}", soft_wrap=True)
    sys.exit(exit_code)


def _storage_sentence(error: Exception) -> str | None:
    """What is wrong with the place that was written to or read from, if that is what the error is about."""
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRORS:
        place = error.filename2 or error.filename or "the output folder"
        return f"{_STORAGE_ERRORS[error.errno]}: {place}; make room or choose another folder with --output-dir"
    if "No space left on device" in str(error):  # safetensors and torch wrap the system's error
        return (
            f"the disk is full ({' '.join(str(error).split())}); make room or choose another folder with --output-dir"
        )
    return None
