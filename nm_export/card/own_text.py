"""The Markdown file with which a publisher adds to a card: `publish.card_text`."""

from pathlib import Path

from nm_export.errors import UserError

_LARGEST = 1_000_000  # bytes


def read_own_text(name: str | None) -> str | None:
    """Return the text of `publish.card_text`, or None if there is none.

    Raises:
        UserError: the file cannot be read, lies elsewhere, or holds what belongs into the recipe.
    """
    if name is None:
        return None
    path, here = Path(name), Path.cwd().resolve()
    try:
        if not path.resolve(strict=True).is_relative_to(here):  # a link leads out: the recipe may be somebody else's
            raise UserError(f"publish.card_text: {name} leads out of the folder {here}; copy the file there.")
        if path.stat().st_size > _LARGEST:
            raise UserError(f"publish.card_text: {name} is larger than {_LARGEST:,} bytes; is it the right file?")
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"publish.card_text: {name} is not a UTF-8 text file (byte {error.start}).") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"publish.card_text: {name} cannot be read ({reason}; looked from {here}).") from error
    if text.startswith("---\n"):
        raise UserError(
            f"publish.card_text: {name} begins with metadata; remove them, and give publish.license, publish.language "
            "and publish.tags in the recipe."
        )
    if "<!-- nm_export:" in text:
        raise UserError(f"publish.card_text: {name} holds marks of nm-export (<!-- nm_export:...); remove them.")
    return text
