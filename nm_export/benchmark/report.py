"""What all results of a benchmark can do: plain values, Markdown, and both of them shown or written."""

import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nm_export.tables import Markdown


class Report(ABC):
    """A dataclass of measurements."""

    kind: str
    """Name in JSON files."""

    @abstractmethod
    def to_markdown(self) -> str:
        """Return the tables."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: those of the dataclass, and its `kind`."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    def __rich__(self) -> Markdown:
        return Markdown(self.to_markdown())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def this_command() -> str:
    """The command line of this process, as a user would type it."""
    return shlex.join(["nm-export", *sys.argv[1:]])
