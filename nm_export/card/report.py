"""The card as one HTML page that needs nothing else: no request, no script; on a phone, on paper, light and dark."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from nm_export.card.marks import as_read

_PAGE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Picture:
    """The same picture on white paper and on black, SVG."""

    light: str
    dark: str


def report_html(title: str, markdown: str, pictures: Mapping[str, Picture]) -> str:
    """Return a card as a page.

    Args:
        title: of the page.
        markdown: the card; HTML in it is shown, not obeyed.
        pictures: by the path with which the card names them.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", lambda *_: '<div class="wide"><table>')
    parser.add_render_rule("table_close", lambda *_: "</table></div>")

    def image(_: Any, tokens: Sequence[Token], index: int, *__: Any) -> str:
        token = tokens[index]
        picture = pictures.get(str(token.attrs["src"]))
        if picture is None:  # nothing is fetched
            return html.escape(token.content)
        return (
            f'<picture><source media="screen and (prefers-color-scheme: dark)" srcset="{_data(picture.dark)}">'
            f'<img src="{_data(picture.light)}" alt="{html.escape(token.content)}"></picture>'
        )

    # MarkdownIt binds rules to its renderer: the first argument is that renderer
    parser.add_render_rule("image", image)
    page = _PAGE.read_text(encoding="utf-8")
    return page.replace("{title}", html.escape(title)).replace("{body}", parser.render(as_read(markdown)))


def _data(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
