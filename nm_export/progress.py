"""Progress bars for whatever takes longer than a breath."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield `items` and show on stderr how many of `total` are done, the time taken and the time left.

    Without a terminal (a log file, CI) nothing is drawn.
    """
    with _bar() as progress:
        yield from progress.track(items, total=total, description=description)


@contextmanager
def steps(description: str, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Show the progress of work that is counted by calls of the function that this yields, with a note beside the bar.

    Without a terminal a line is written for every tenth of the work.

    Args:
        description: what is done.
        total: number of steps in all.
        done: number of steps that an earlier run has done.
    """
    with _bar() as progress:
        task = progress.add_task(description, total=total, completed=done)

        def advance(note: str) -> None:
            nonlocal done
            done += 1
            progress.update(task, advance=1, description=f"{description}, {note}")
            if progress.disable and done * 10 // total > (done - 1) * 10 // total:
                progress.console.print(f"  {description} {done}/{total}, {note}", highlight=False)

        yield advance


def say(sentence: str) -> None:
    """Write a sentence that the user should know to stderr."""
    Console(stderr=True, highlight=False).print(f"  {escape(sentence)}", soft_wrap=True)


def _bar() -> Progress:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
