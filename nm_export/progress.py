"""What is going on: bars in a terminal, and in a log a line every half minute."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nm_export.terminal import console

T = TypeVar("T")

INTERVAL = 30.0
"""Seconds between two lines where no bar is drawn."""


@dataclass
class Work:
    """Something that takes its time.

    Attributes:
        description: what is done.
        total: number of steps in all; None where they are not counted.
        done: number of steps that are done.
        note: what there is to say about the last step.
        before: number of steps that an earlier run has done.
        start: when it began, in seconds of a clock of no origin.
    """

    description: str
    total: int | None = None
    done: int = 0
    note: str = ""
    before: int = 0
    start: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        counted = "" if self.total is None else f": {self.done}/{self.total}"
        return f"{self.description}{counted}{self.note and f', {self.note}'}"

    def left(self) -> str:
        """How long the rest takes if it goes on as it did, in words; "" where that is not known."""
        done = self.done - self.before
        if self.total is None or not done or self.done >= self.total:
            return ""
        seconds = (time.monotonic() - self.start) / done * (self.total - self.done)
        return f", about {clock(seconds)} left"


class _Now:
    """The works that are going on, from the outermost to the innermost, and the thread that speaks of them."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.is_drawn = False
        self.is_silent = False
        self._over = threading.Event()

    @contextmanager
    def doing(self, work: Work) -> Iterator[Work]:
        """Count `work` among what is going on."""
        self.works.append(work)
        if len(self.works) == 1:
            self._over = threading.Event()
            threading.Thread(target=self._speak, args=(self._over,), name="progress", daemon=True).start()
        try:
            yield work
        finally:
            self.works.remove(work)
            if not self.works:
                self._over.set()

    def _speak(self, over: threading.Event) -> None:
        while not over.wait(INTERVAL):
            lines = console(stderr=True)
            works = list(self.works)
            if works and not (lines.is_terminal or self.is_silent):
                outer, inner = works[0], works[-1]
                what = str(outer) if outer is inner else f"{outer.description}: {inner}"
                passed = clock(time.monotonic() - outer.start)
                lines.print(f"  {escape(what)}, {passed}{inner.left()}")


_now = _Now()


def be_silent() -> None:
    """Show and say nothing from now on: of several processes one speaks."""
    _now.is_silent = True


@contextmanager
def doing(description: str) -> Iterator[None]:
    """Within the block, say every half minute in a log that `description` is going on, and how far."""
    with _now.doing(Work(description)):
        yield


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield `items` and show on stderr how many of `total` are done, the time taken and the time left.

    Without a terminal (a log file, CI) a line is written every half minute.
    """
    with _shown(Work(description, total)) as update:
        for item in items:
            yield item
            update("")


@contextmanager
def steps(description: str, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Show the progress of work that is counted by calls of the function that this yields, with a note beside the bar.

    Without a terminal a line is written for every tenth of the work, and every half minute.

    Args:
        description: what is done.
        total: number of steps in all.
        done: number of steps that an earlier run has done.
    """
    work = Work(description, total, done, before=done)
    lines = console(stderr=True)
    with _shown(work) as update:

        def advance(note: str) -> None:
            update(note)
            if not (lines.is_terminal or _now.is_silent) and work.done * 10 // total > (work.done - 1) * 10 // total:
                lines.print(f"  {escape(f'{description} {work.done}/{total}, {note}')}")

        yield advance


def say(sentence: str) -> None:
    """Write a sentence that the user should know to stderr."""
    console(stderr=True).print(f"  {escape(sentence)}", soft_wrap=True)


def clock(seconds: float) -> str:
    """Minutes and seconds, `0:31`, or hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def _shown(work: Work) -> Iterator[Callable[[str], None]]:
    """Yield what counts a step of `work`; a terminal shows a bar, of works within each other the outer one's."""
    with _now.doing(work), _bar(work) as draw:

        def update(note: str) -> None:
            work.done += 1
            work.note = note
            draw()

        yield update


@contextmanager
def _bar(work: Work) -> Iterator[Callable[[], None]]:
    lines = console(stderr=True)
    if _now.is_drawn or _now.is_silent or not lines.is_terminal:
        yield lambda: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    _now.is_drawn = True
    try:
        with Progress(*columns, console=lines, transient=True) as progress:
            task = progress.add_task(escape(work.description), total=work.total, completed=work.done)

            def draw() -> None:
                shown = f"{work.description}, {work.note}" if work.note else work.description
                progress.update(task, completed=work.done, description=escape(shown))

            yield draw
    finally:
        _now.is_drawn = False
