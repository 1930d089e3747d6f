"""A card is written again: what somebody wrote or changed by hand stays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from nm_export.card.marks import Block, Card, card_text, hash_of

OWN_TEXT = "text"
"""Section with the file that `publish.card_text` names: written once, since a folder does not hold that file."""


@dataclass(frozen=True)
class Merged:
    """A card, and the names of the sections that are not what nm-export would write.

    Attributes:
        text: README.md.
        kept: sections that were edited, and are kept.
        removed: sections that were removed, and stay away.
    """

    text: str
    kept: tuple[str, ...]
    removed: tuple[str, ...]


def new_card(title: str, sections: Mapping[str, str], metadata: Mapping[str, Any]) -> str:
    """A card that nobody has edited yet."""
    return merged(Card({}, "", (Block(f"# {title}"),), (), {}), sections, metadata, overwrite=False).text


def merged(card: Card, sections: Mapping[str, str], metadata: Mapping[str, Any], *, overwrite: bool) -> Merged:
    """Put new sections and metadata into a card.

    Text outside of sections, and keys that were added, changed or removed in the front matter, always stay.

    Args:
        card: with marks.
        sections: what nm-export writes now, by name, in order.
        metadata: likewise.
        overwrite: whether edited and removed sections are written anew.
    """
    removed = [] if overwrite else [name for name in sections if name in card.sections and card.section(name) is None]
    blocks: list[Block] = []
    kept = []
    for block in card.blocks:
        name = block.section
        if name is None:
            blocks.append(block)
        elif name in sections and (overwrite or not block.is_edited):
            blocks.append(_block(name, sections[name]))
        elif block.is_edited or name == OWN_TEXT:
            blocks.append(block)
            kept += [name] if name in sections else []
    for name in sections:
        if name not in removed and not any(block.section == name for block in blocks):
            blocks.insert(_place(blocks, list(sections), name), _block(name, sections[name]))
    values = merged_metadata(card, metadata)
    known = dict.fromkeys([*sections, *(name for name in card.sections if name == OWN_TEXT)])
    hashes = {key: hash_of(value) for key, value in metadata.items()}
    as_it_was = values == card.metadata and list(values) == list(card.metadata)  # comments in it included
    front_matter = card.front_matter if as_it_was else yaml.dump(values, sort_keys=False, allow_unicode=True)
    return Merged(card_text(front_matter, blocks, known, hashes), tuple(kept), tuple(removed))


def merged_metadata(card: Card, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The front matter of a card that is written again: `metadata`, but for what was changed by hand."""
    values: dict[str, Any] = {}
    for key, value in card.metadata.items():
        by_hand = key not in card.hashes or hash_of(value) != card.hashes[key]
        if by_hand or key in metadata:
            values[key] = value if by_hand else metadata[key]
    for key, value in metadata.items():
        if key not in card.metadata and key not in card.hashes:  # else it was removed by hand
            values[key] = value
    return values


def _block(name: str, text: str) -> Block:
    return Block(text.strip("\n"), name, hash_of(text))


def _place(blocks: list[Block], order: list[str], name: str) -> int:
    """Where a new section goes: behind the nearest of those that come before it, or behind the title."""
    before = order[: order.index(name)]
    places = [index for index, block in enumerate(blocks) if block.section in before]
    if places:
        return places[-1] + 1
    return 1 if blocks and blocks[0].section is None else 0
