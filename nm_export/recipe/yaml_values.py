"""YAML text -> plain values, with every scalar left as the text that the user wrote.

The recipe's own types decide what a scalar means. PyYAML's would read the pattern 8:16 as the number 496 (YAML 1.1 has
base-60 integers), a revision 1234567 as an integer and the score `no` as a boolean.
"""

from dataclasses import dataclass, field
from typing import Any

import yaml

from nm_export.errors import UserError

MAX_CHARACTERS = 1_000_000
MAX_VALUES = 20_000
MAX_DEPTH = 20

_NULL_TAG = "tag:yaml.org,2002:null"

KeyPath = tuple[str | int, ...]


@dataclass
class _Conversion:
    """Walks a YAML node graph; remembers the line of every key path."""

    origin: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    values: int = 0

    def convert(self, node: yaml.Node, path: KeyPath = ()) -> Any:
        self.values += 1
        # Aliases are followed, so that both limits hold for what they expand to.
        if self.values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise UserError(
                f"{self.origin}: more than {MAX_VALUES} values or {MAX_DEPTH} levels (anchors counted each time they "
                "are used); a recipe is a short file, is this the right one?"
            )
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return None if node.tag == _NULL_TAG else node.value
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{self.origin}, line {line}: a key must be one word")
            key = key_node.value
            if key in mapping:
                raise UserError(
                    f"{self.origin}, line {line}: the key {dotted((*path, key))} is given twice (first in line "
                    f"{self.lines[(*path, key)]}); remove one"
                )
            self.lines[(*path, key)] = line
            mapping[key] = self.convert(value_node, (*path, key))
        return mapping


def parse_yaml(text: str, origin: str) -> tuple[Any, dict[KeyPath, int]]:
    """Parse one YAML document. Returns its value and the line number (from 1) of every key path.

    Scalars come back as str (null as None), sequences as lists, mappings as dicts. `origin` names the text in messages.
    Raises UserError with line and column.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{origin}: {len(text):,} characters are too many for a recipe; is this the right file?")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{origin}{_position(error)}: not valid YAML: {_reason(error, text)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{origin}, line {line}: the character {_shown(error.character)} is not allowed in YAML"
        ) from error
    except RecursionError as error:
        raise UserError(f"{origin}: more than {MAX_DEPTH} levels; is this the right file?") from error
    except ValueError as error:  # PyYAML's scanner lets int() and chr() fail on impossible escapes and versions
        raise UserError(f"{origin}: not valid YAML: {error}") from error
    if node is None:
        return None, {}
    conversion = _Conversion(origin)
    return conversion.convert(node), conversion.lines


def dotted(path: KeyPath) -> str:
    """Key path as users write it: `sparsity.overrides[0].modules`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if part.isprintable() and len(part) <= 60 else f"{part[:60]!r}"
            text += f".{word}" if text else word
    return text


def _position(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _shown(character: int | str | bytes) -> str:
    return repr(chr(character) if isinstance(character, int) else character)


def _reason(error: yaml.MarkedYAMLError, text: str) -> str:
    reason = " ".join(part for part in (error.problem, error.context) if part)
    mark = error.problem_mark
    start = error.context_mark or mark
    lines = text.splitlines()
    starts_with_star = any(
        at is not None and at.line < len(lines) and lines[at.line][at.column : at.column + 1] == "*"
        for at in (start, mark)
    )
    if starts_with_star or "alias" in reason:
        return 'a word that starts with * must stand in quotes, for example "*.q_proj"'
    if "cannot start any token" in reason and "\\t" in reason:
        return "a tab stands where YAML wants spaces"
    return reason
