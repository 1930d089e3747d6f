"""Which parts of README.md nm-export wrote: marks around its sections, HTML comments that no reader sees.

    <!-- nm_export:begin quality 0123456789ab -->

    ## Quality
    ...

    <!-- nm_export:end quality -->

The digits are a hash of the section as it was written, so that an edited section is known.
The last line of a card says in the same way what was written: sections that are gone since were removed by hand.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from nm_export.card.naming import named_in, without_names
from nm_export.errors import UserError

_SECTION = re.compile(
    r"^<!-- nm_export:begin (?P<name>\w+) (?P<hash>[0-9a-f]+) -->\n"
    r"(?P<text>.*?)^<!-- nm_export:end (?P=name) -->[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
_WRITTEN = re.compile(r"^<!-- nm_export:written (?P<content>\{.*\}) -->[ \t]*$", re.MULTILINE)
_MARK = re.compile(r"^<!-- nm_export:(?:begin|end|written) .*-->[ \t]*\n*", re.MULTILINE)
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(?P<yaml>.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A part of a card.

    Attributes:
        text: Markdown, without empty lines around it.
        section: name of the section that nm-export wrote; None for what somebody wrote by hand.
        written: hash of the section as nm-export wrote it.
    """

    text: str
    section: str | None = None
    written: str = ""

    @property
    def is_edited(self) -> bool:
        """Whether the section is no longer as nm-export wrote it."""
        return self.section is not None and hash_of(self.text) != self.written


@dataclass(frozen=True)
class Card:
    """A README.md, taken apart.

    Attributes:
        metadata: the front matter.
        front_matter: its text.
        blocks: what stands below it.
        sections: names of the sections that nm-export wrote, also of those that are gone since.
        hashes: of the values in the front matter as nm-export wrote them.
    """

    metadata: dict[str, Any]
    front_matter: str
    blocks: tuple[Block, ...]
    sections: tuple[str, ...]
    hashes: dict[str, str]

    @property
    def is_marked(self) -> bool:
        """Whether it says which parts nm-export wrote."""
        return any(block.section for block in self.blocks) or bool(self.sections)

    @property
    def loaded_from(self) -> str | None:
        """What its code loads the model from: in a card with marks only what nm-export wrote counts."""
        texts = [self.section("load") or ""] if self.is_marked else [block.text for block in self.blocks]
        return next(filter(None, map(named_in, texts)), None)

    @property
    def title(self) -> str | None:
        """Its first heading that nm-export has no word in."""
        texts = (block.text for block in self.blocks if block.section is None)
        return next((match[1].strip() for text in texts if (match := _TITLE.search(text))), None)

    def section(self, name: str) -> str | None:
        """Text of a section that nm-export wrote, or None."""
        return next((block.text for block in self.blocks if block.section == name), None)


def read_card(text: str, where: str) -> Card:
    """Take a card apart. Raises a UserError if its front matter is no YAML mapping; `where` is its path."""
    match = _FRONT_MATTER.match(text)
    metadata = _metadata(match["yaml"], where) if match else {}
    body = text[match.end() :] if match else text
    found = _WRITTEN.search(body)
    written = _written(found["content"]) if found else {}
    sections, hashes = written.get("sections", []), written.get("metadata", {})
    return Card(
        metadata,
        match["yaml"] if match else "",
        tuple(_blocks(_WRITTEN.sub("", body))),
        tuple(name for name in sections if isinstance(name, str)) if isinstance(sections, list) else (),
        dict(hashes) if isinstance(hashes, dict) else {},
    )


def card_text(front_matter: str, blocks: Iterable[Block], sections: Iterable[str], hashes: Mapping[str, str]) -> str:
    """Put a card together again; the front matter is YAML without its lines of dashes."""
    parts = [_marked(block) if block.section else block.text for block in blocks]
    written = json.dumps({"sections": list(sections), "metadata": dict(hashes)})
    parts.append(f"<!-- nm_export:written {written} -->")
    return f"---\n{front_matter.strip()}\n---\n\n" + "\n\n".join(parts) + "\n"


def as_read(markdown: str) -> str:
    """A card as its reader sees it: without front matter and marks."""
    return _MARK.sub("", _FRONT_MATTER.sub("", markdown, count=1)).lstrip("\n")


def hash_of(content: Any) -> str:
    """A short hash of a section, whatever it loads the model from and spaces at line ends, or of a value of YAML."""
    if isinstance(content, str):
        content = "\n".join(line.rstrip() for line in without_names(content).strip().splitlines())
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _marked(block: Block) -> str:
    return (
        f"<!-- nm_export:begin {block.section} {block.written} -->\n\n{block.text}\n\n"
        f"<!-- nm_export:end {block.section} -->"
    )


def _blocks(body: str) -> Iterator[Block]:
    at = 0
    for match in _SECTION.finditer(body):
        if before := body[at : match.start()].strip("\n"):
            yield Block(before)
        yield Block(match["text"].strip("\n"), match["name"], match["hash"])
        at = match.end()
    if rest := body[at:].strip("\n"):
        yield Block(rest)


def _metadata(text: str, where: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 2}" if mark else ""
        reason = getattr(error, "problem", None) or "it cannot be read"
        raise UserError(f"{where}{line}: the metadata between the lines --- is not valid YAML: {reason}") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{where}: the metadata between the lines --- is no mapping of keys to values")
    return content or {}


def _written(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
