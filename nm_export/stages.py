"""The stages of a run as the user sees them: what is going on, and how long it took."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


class Stages:
    """Announce stages on stderr and keep their durations.

    Args:
        announce: False is silent: of several processes one speaks.

    Attributes:
        seconds: wall-clock seconds of each finished stage, in order.
    """

    def __init__(self, *, announce: bool = True) -> None:
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True, highlight=False, quiet=not announce)

    @contextmanager
    def stage(self, name: str, description: str) -> Iterator[None]:
        """Time the block as stage `name` and say `description` before and the duration after it."""
        self._console.print(f"[bold]•[/bold] {escape(description)} …", soft_wrap=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
        self._console.print(f"  [dim]{self.seconds[name]:.1f} s[/dim]")


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes
