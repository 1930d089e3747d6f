"""Tables, facts and Markdown as text, for terminals of any width and for files. Names and paths are never cut."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

_GAP = 2
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Columns:
    """A table.

    Where it is wider than the screen, headings are broken into lines; then columns that say the same in every row are
    named below the table instead; then the rows are left as wide as they are.

    Attributes:
        header: titles of the columns.
        rows: cells; each row has as many as the header.
        numbers_from: index of the first column that is aligned to the right.
        last_is_total: whether the last row stands out.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers_from: int | None = None
    last_is_total: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        kept, limit = list(range(len(self.header))), options.max_width
        headings = [[title] for title in self.header]
        if _width(self._widths(headings, kept)) > limit:
            headings = [title.split() or [""] for title in self.header]
        dropped = []
        if _width(self._widths(headings, kept)) > limit and len(self.rows) > 1:
            dropped = [index for index in kept[1:] if len({row[index] for row in self.rows}) == 1]
            kept = [index for index in kept if index not in dropped]
        widths = self._widths(headings, kept)
        height = max(len(headings[index]) for index in kept)
        for line in range(height):
            titles = [_padded(headings[index], height)[line] for index in kept]
            yield Text(self._line(titles, kept, widths), style="bold", no_wrap=True, overflow="ignore")
        for number, row in enumerate(self.rows):
            style = "bold" if self.last_is_total and number == len(self.rows) - 1 else ""
            cells = [row[index] for index in kept]
            yield Text(self._line(cells, kept, widths), style=style, no_wrap=True, overflow="ignore")
        same = [f"{self.header[index]}: {self.rows[0][index]}" for index in dropped if self.rows[0][index]]
        if same:
            yield Text(f"In all rows: {', '.join(same)}.")

    def _widths(self, headings: Sequence[Sequence[str]], kept: Sequence[int]) -> list[int]:
        return [max(map(cell_len, (*headings[index], *(row[index] for row in self.rows)))) for index in kept]

    def _line(self, cells: Sequence[str], kept: Sequence[int], widths: Sequence[int]) -> str:
        filled = []
        for cell, index, width in zip(cells, kept, widths, strict=True):
            space = " " * (width - cell_len(cell))
            is_number = self.numbers_from is not None and index >= self.numbers_from
            filled.append(space + cell if is_number else cell + space)
        return (" " * _GAP).join(filled).rstrip()


@dataclass(frozen=True)
class Facts:
    """Labels and what there is to say about each; lines of a terminal are broken between words."""

    rows: Sequence[tuple[str, str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        indent = max((cell_len(label) for label, _ in self.rows), default=0) + _GAP
        for label, value in self.rows:
            first, *others = broken(value, options.max_width - indent) or [""]
            yield Text.assemble((label.ljust(indent), "bold"), first, no_wrap=True, overflow="ignore")
            for line in others:
                yield Text(" " * indent + line, no_wrap=True, overflow="ignore")


@dataclass(frozen=True)
class Sentences:
    """Text whose lines are broken between words only, so that paths and addresses stay whole.

    Attributes:
        text: one paragraph a line.
        first: what stands before the first line of a paragraph.
        then: what stands before its others.
    """

    text: str
    first: str = ""
    then: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for paragraph in self.text.splitlines():
            lines = broken(paragraph, options.max_width - max(len(self.first), len(self.then))) or [""]
            for number, line in enumerate(lines):
                yield Text((self.then if number else self.first) + line, no_wrap=True, overflow="ignore")


@dataclass(frozen=True)
class Markdown:
    """Markdown as this package writes it (tables, lists, bold words, paragraphs): plain text in files, laid out in a
    terminal.

    Attributes:
        source: the text.
        plain: whether a terminal gets the text as it is, too.
    """

    source: str
    plain: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.plain or not console.is_terminal:
            yield Text(self.source.rstrip("\n"), no_wrap=True, overflow="ignore")
            return
        table: list[str] = []
        for line in self.source.splitlines():
            if line.startswith("|"):
                table.append(line)
                continue
            if table:
                yield _read_table(table)
                table = []
            item = line.startswith("- ")
            yield Sentences(_plain(line.removeprefix("- ")) or " ", "- " if item else "", "  " if item else "")
        if table:
            yield _read_table(table)


def broken(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters, broken between words; longer words stay whole."""
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False)


def time_in_words(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _padded(lines: Sequence[str], height: int) -> list[str]:
    return [""] * (height - len(lines)) + list(lines)


def _plain(text: str) -> str:
    return text.replace("**", "").replace("\\|", "|").replace("`", "")


def _read_table(lines: Sequence[str]) -> Columns:
    header, marks, *rows = ([_plain(cell).strip() for cell in _CELL.split(line)[1:-1]] for line in lines)
    right = [index for index, mark in enumerate(marks) if mark.endswith(":")]
    return Columns(header, rows, numbers_from=min(right, default=None))
