"""The name by which a card's code loads the model: a folder until it is published, then a repository."""

import re

_NAMES = re.compile(r"((?:from_pretrained|genai_model)\((?:\"|&quot;))([^\"&]+)")


def renamed(text: str, name: str, new: str) -> str:
    """Return a card or its HTML page with `new` where lines load the model from `name`; other models stay."""
    return _NAMES.sub(lambda match: match[1] + (new if match[2] == name else match[2]), text)


def without_names(text: str) -> str:
    """The same for whatever a card loads the model from."""
    return _NAMES.sub(lambda match: match[1], text)


def named_in(text: str) -> str | None:
    """What the first such line loads the model from."""
    match = _NAMES.search(text)
    return match[2] if match else None
