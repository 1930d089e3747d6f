"""The stages of a run as the user sees them: what is going on, how long it took, and what was done before."""

import functools
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape

from nm_export.journal import Entry, Journal
from nm_export.progress import doing
from nm_export.tables import time_in_words
from nm_export.terminal import console

WORTH_SAYING = 20.0
"""Seconds from which on the announcement of a stage says how long it takes."""


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
        self._road: tuple[str, ...] = ()
        self._expected: Callable[[], Mapping[str, float]] = dict
        self._console = console(stderr=True, quiet=not announce)

    def follow(self, road: Sequence[str]) -> None:
        """Number the stages that are announced from now on: those of `road`, in this order, are all that there are."""
        self._road = tuple(road)

    def expect(self, seconds: Callable[[], Mapping[str, float]]) -> None:
        """Say with each stage that is announced from now on about how long it takes.

        Args:
            seconds: gives that by the name of the stage; called once, when it is first asked for.
        """
        self._expected = functools.cache(seconds)

    @contextmanager
    def stage(self, name: str, description: str) -> Iterator[None]:
        """Time the block as stage `name` and say `description` before and the duration after it."""
        if not self._console.quiet:
            self._say(f"{self._number(name)}{description}{self._about(name)} …")
        self.current = name
        start = time.perf_counter()
        if self._console.quiet:
            yield
        else:
            with doing(description):
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

    def _number(self, name: str) -> str:
        return f"{self._road.index(name) + 1} of {len(self._road)}: " if name in self._road else ""

    def _about(self, name: str) -> str:
        seconds = self._expected().get(name, 0.0)
        return f", about {time_in_words(seconds)}" if seconds >= WORTH_SAYING else ""

    def _say(self, line: str) -> None:
        self._console.print(f"[bold]•[/bold] {escape(line)}", soft_wrap=True)


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes
