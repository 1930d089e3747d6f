"""The fields of a section as text for docstrings, made from the descriptions that the recipe's schema has."""

import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

from nm_export.recipe.sections import Section

F = TypeVar("F", bound=Callable[..., Any])


def with_fields_of(section: type[Section], *, leave_out: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Return a decorator that lists a section's fields, their choices, defaults and meanings in a docstring."""

    def decorate(function: F) -> F:
        lines = describe_fields(section, leave_out)
        function.__doc__ = f"{(function.__doc__ or '').rstrip()}\n\n    Fields of `{section.__name__}`:\n{lines}\n    "
        return function

    return decorate


def describe_fields(section: type[Section], leave_out: tuple[str, ...] = ()) -> str:
    """Return an entry for each field."""
    schema = section.model_json_schema()["properties"]
    entries = []
    for name, field in section.model_fields.items():
        if name in leave_out:
            continue
        values = schema[name]
        choices = f", one of {', '.join(map(str, values['enum']))}" if "enum" in values else ""
        meaning = " ".join((field.description or "").split())
        text = f"{name} (default {_shown(field.default)}{choices}): {meaning}"
        entries.append(textwrap.fill(text, 120, initial_indent=" " * 8, subsequent_indent=" " * 12))
    return "\n".join(entries)


def _shown(default: Any) -> str:
    return "none" if default is None else repr(list(default)) if isinstance(default, tuple) else repr(default)
