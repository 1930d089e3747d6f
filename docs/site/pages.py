"""What the site has besides the files of docs/: README as its first page, the changelog, the recipes that are shipped.

Links are written for readers of the repository. Those that leave docs/ are turned here: to the pages made of what they
name, or, for source files, into plain text.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
RECIPES_PAGE = "shipped_recipes.md"
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}

_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
_FENCED = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages that the navigation does not list."""
    listed = set(_pages(config.nav))
    others = sorted(path.name for path in Path(config.docs_dir).glob("*.md") if path.name not in listed)
    if others:
        config.nav.append({"More": others})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of files outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, RECIPES_PAGE, content=_recipes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave docs/."""
    folder = ROOT if page.file.src_uri in PAGES.values() else ROOT / "docs"

    def turned(link: re.Match[str]) -> str:
        text, target = link.groups()
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        path, _, anchor = target.partition("#")
        place = (folder / path).resolve()
        if not place.exists():
            if folder == ROOT / "docs" and files.get_file_from_path(path):
                return link[0]  # made for the site
            raise PluginError(f"{page.file.src_uri}: {target} does not exist")
        within = place.relative_to(ROOT)
        if within.parts[0] == "recipes":
            return f"[{text}]({RECIPES_PAGE}#{_anchor(within)})"
        if within.as_posix() in PAGES:
            return f"[{text}]({PAGES[within.as_posix()]}{anchor and '#' + anchor})"
        if within.parts[0] == "docs":
            return f"[{text}]({within.relative_to('docs').as_posix()}{anchor and '#' + anchor})"
        return text

    blocks = _FENCED.split(markdown)
    return "".join(block if index % 2 else _LINK.sub(turned, block) for index, block in enumerate(blocks))


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav or ()) for page in _pages(entry)]


def _anchor(recipe: Path) -> str:
    return re.sub(r"[^\w-]", "", recipe.with_suffix("").name.lower().replace(".", ""))


def _recipes() -> str:
    """Every shipped recipe under its name; a folder has a heading of its own."""
    lines = ["# Shipped recipes", "", "They lie in the folder `recipes` of the repository.", ""]
    for folder in (ROOT / "recipes", ROOT / "recipes" / "paper"):
        if folder.name == "paper":
            lines += ["## paper", "", "The methods of the paper, each alone.", ""]
        for path in sorted(folder.glob("*.yaml")):
            level = "###" if folder.name == "paper" else "##"
            lines += [f"{level} {path.stem}", "", "```yaml", path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)
