"""The blocks of code in README.md and docs/*.md.

A block that cannot run says why in a comment above it: `<!-- not run: needs two GPUs -->`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    code: str
    reason: str | None
    """Why it does not run."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> Iterator[Block]:
    """All blocks in one of the languages ("" for those that name none)."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n```") % 2 == 0, f"{path.name} has a block that does not end, or an indented one"
        for match in _BLOCK.finditer(text):
            if match["language"] in languages:
                line = text.count("\n", 0, match.start("code")) + 1
                page = path.relative_to(ROOT).as_posix()
                yield Block(page, line, match["language"], match["code"], match["reason"])
