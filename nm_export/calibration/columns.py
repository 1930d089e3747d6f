"""The text column of a row, or a sentence that says which columns there are."""

from collections.abc import Iterable, Mapping
from typing import Any

from nm_export.errors import UserError
from nm_export.recipe import TextSection


def text_of(row: Mapping[str, Any], section: TextSection) -> str:
    """Text of a row; a null counts as empty. Raises UserError when the column is missing or holds something else."""
    if section.text_column not in row:
        raise missing_column(section, row)
    value = row[section.text_column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{section.key}.text_column: {section.text_column!r} of {section.dataset} holds {type(value).__name__}, "
            "not text"
        )
    return value


def missing_column(section: TextSection, columns: Iterable[str]) -> UserError:
    """The error for a text column that the dataset lacks."""
    return UserError(
        f"{section.key}.text_column: {section.dataset} has no column {section.text_column!r}, only {', '.join(columns)}"
    )
