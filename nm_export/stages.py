"""The stages of a run as the user sees them: what is going on, how long it took, and what was done before."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from nm_export.journal import Entry, Journal


class Stages:
    """Announce stages on stderr and keep their durations.

    Args:
        announce: False is silent: of several processes one speaks.
        journal: where finished stages are looked up and kept; None keeps nothing.

    Attributes:
        seconds: wall-clock seconds of each finished stage, in order; of one that was taken over, those of its own run.
        peak_memory: bytes; the largest of the stages that were taken over.
        current: name of the stage that is going on, or None.
    """

    def __init__(self, *, announce: bool = True, journal: Journal | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_memory = 0
        self.current: str | None = None
        self.journal = journal
        self._console = Console(stderr=True, highlight=False, quiet=not announce)

    @contextmanager
    def stage(self, name: str, description: str) -> Iterator[None]:
        """Time the block as stage `name` and say `description` before and the duration after it."""
        self._console.print(f"[bold]•[/bold] {escape(description)} …", soft_wrap=True)
        self.current = name
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
        self.current = None
        self._console.print(f"  [dim]{self.seconds[name]:.1f} s[/dim]")

    def take(self, name: str, read: Mapping[str, str]) -> Entry | None:
        """Return what an earlier run left of a stage if it holds, and say so; None when the stage is to be done.

        Args:
            name: of the stage.
            read: what it would read, see `Entry`.
        """
        journal = self.journal
        if journal is None or name not in journal.entries:
            return None
        reason = journal.why_not(name, read)
        if reason is not None:
            self._say(f"{name}: done again, {reason}")
            journal.forget(name)
            return None
        entry = journal.entries[name]
        self.seconds[name] = entry.seconds
        self.peak_memory = max(self.peak_memory, entry.peak_memory)
        self._say(f"{name}: done, taken as it is")
        return entry

    def keep(self, name: str, read: Mapping[str, str], files: Iterable[Path] = (), result: Any = None) -> None:
        """Let a later run take over the stage that has just ended.

        Args:
            name: of the stage.
            read: what it has read.
            files: what it has written, in the journal's folder.
            result: what it has found out. JSON values.
        """
        if self.journal is not None and self.journal.writable:
            self.journal.record(name, read, files, result, self.seconds.get(name, 0.0), peak_memory_bytes())

    def _say(self, line: str) -> None:
        self._console.print(f"[bold]•[/bold] {escape(line)}", soft_wrap=True)


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes
