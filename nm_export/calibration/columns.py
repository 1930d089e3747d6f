"""The text of a row, or a sentence that says which columns there are."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nm_export.errors import UserError
from nm_export.recipe import TextSection

Render = Callable[[list[dict[str, Any]]], str]
"""Chat messages -> text, as the tokenizer's chat template has it."""

MESSAGES = "messages"
"""The column of chats that is read where there is no column `text` and the recipe names no other."""

_DEFAULT = TextSection.model_fields["text_column"].default


def text_column(section: TextSection, columns: Iterable[str]) -> str:
    """Return the column to read: the section's, or that of the chats. Raises UserError when there is neither."""
    known = list(columns)
    if section.text_column in known:
        return section.text_column
    if MESSAGES in known and section.text_column == _DEFAULT:
        return MESSAGES
    raise missing_column(section, known)


def text_of(row: Mapping[str, Any], section: TextSection, render: Render | None = None, place: str = "") -> str:
    """Text of a row: a text, several (joined by line ends), or a chat; a null counts as empty.

    Args:
        row: values by column.
        section: whose text it is.
        render: what makes a text of a chat; None where chats cannot be read.
        place: where the row is, such as "line 3", for messages.

    Raises:
        UserError: the column is missing or holds something else, a chat without a template, or half a character.
    """
    column = text_column(section, row)
    value = row[column]
    where = f"{section.dataset}{f', {place},' if place else ''}"
    if value is None:
        return ""
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    elif isinstance(value, (list, tuple)) and all(isinstance(part, Mapping) and "role" in part for part in value):
        value = _rendered([dict(part) for part in value], column, section, render, where)
    if not isinstance(value, str):
        raise UserError(
            f"{section.key}.text_column: {column!r} of {where} holds {type(value).__name__}, not text; name the column "
            "that holds it"
        )
    return check_characters(value, section, place)


def check_characters(text: str, section: TextSection, place: str = "") -> str:
    """Return a text; raise UserError if it holds half of a character (a lone surrogate), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise UserError(
            f"{section.key}.dataset: {section.dataset} holds half a character ({half})"
            f"{f' in {place}' if place else ''}; write the text again as UTF-8, without it"
        ) from error
    return text


def _rendered(
    messages: list[dict[str, Any]], column: str, section: TextSection, render: Render | None, where: str
) -> str:
    if render is None:
        raise UserError(
            f"{section.key}.text_column: {column!r} of {where} holds chats, and there is no chat template to write "
            "them with; give a tokenizer that has one, or a column of text"
        )
    try:
        return render(messages)
    except Exception as error:  # a template is a program of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{section.key}.text_column: {column!r} of {where} holds a chat that the tokenizer's chat template does "
            f"not take ({reason[:200]})"
        ) from error


def missing_column(section: TextSection, columns: Iterable[str]) -> UserError:
    """The error for a text column that the dataset lacks."""
    return UserError(
        f"{section.key}.text_column: {section.dataset} has no column {section.text_column!r}, only {', '.join(columns)}"
    )
