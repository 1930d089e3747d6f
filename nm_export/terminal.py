"""Where text goes: consoles that break lines in terminals only, and streams that can write every character."""

import codecs
import os
import sys
from typing import TextIO

from rich.console import Console

UNBROKEN = 100_000
"""Columns of a pipe or a file: no line is broken, cut or filled up there."""
_PLAIN = {"…": "...", "•": "*"}
_HANDLER = "nm_export.plain"


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console as wide as the terminal, or without a width where there is none."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if is_terminal(stream) else UNBROKEN
    return Console(stderr=stderr, quiet=quiet, highlight=False, emoji=False, width=width)


def is_terminal(stream: TextIO) -> bool:
    """Whether somebody watches; a closed stream has no reader."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def write_every_character() -> None:
    """Let stdout and stderr replace what their encoding lacks: an answer is not lost to a character."""
    codecs.register_error(_HANDLER, _replaced)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_HANDLER)


def drop_output() -> None:
    """Write nothing more: the reader of stdout or stderr went away, which is no error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            # what is left in the buffer goes nowhere at the end of the process
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    wrong = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in wrong), error.end
