"""Write the card of a folder: README.md, its pictures, report.html."""

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nm_export.benchmark.model import ModelBenchmark
from nm_export.card.facts import Facts, read_facts
from nm_export.card.grid import make_grid
from nm_export.card.loading import named_in
from nm_export.card.markdown import card_markdown
from nm_export.card.measured import benchmarks, quality_panels, speed_panels, task_rows, text_rows, written_rows
from nm_export.card.pictures import DARK, LIGHT, Theme, draw_layers, draw_pairs
from nm_export.card.report import Picture, report_html
from nm_export.card.tables import text_name
from nm_export.errors import UserError
from nm_export.whole_file import write_whole

logger = logging.getLogger(__name__)

CARD, REPORT, PICTURES = "README.md", "report.html", "pictures"


def write_card(folder: Path, *, name: str, repository: str) -> None:
    """Write README.md, report.html and the pictures from what else a new folder holds.

    Args:
        folder: the folder, with all but its card.
        name: title of the card.
        repository: what the lines that load the model name: a repository of the Hub or a folder.

    Raises:
        UserError: a file of the folder is missing or damaged.
    """
    for path, content in _render(read_facts(folder, name=name, repository=repository)).items():
        (folder / path).parent.mkdir(exist_ok=True)
        write_whole(folder / path, content)


def refresh_card(folder: str | Path, *, evaluations: Sequence[Path] = (), speeds: Sequence[Path] = ()) -> Path:
    """Write the card of an exported folder again, with further measurements, which measurements.json keeps.

    Everything is made before the first file changes; README.md, with which readers begin, is the last.

    Args:
        folder: a folder that `pipeline.run` wrote.
        evaluations: files of `nm-export evaluate --json`, which take the place of those that the folder has.
        speeds: files of `nm-export bench --json`, likewise.

    Returns:
        The card.

    Raises:
        UserError: the folder was not written by an export, or a file measures another model or no dense one.
    """
    folder = Path(folder).resolve()
    name, repository = _names(folder)
    facts = read_facts(folder, name=name, repository=repository)
    numbers = facts.numbers
    if evaluations:
        numbers["evaluations"] = [_read_evaluation(path, facts) for path in evaluations]
    if speeds:
        numbers["speed"] = [_read_benchmark(path, facts) for path in speeds]
    files = {"measurements.json": json.dumps(numbers, indent=2) + "\n", **_render(facts)}
    _replace(folder, files)
    return folder / CARD


def _names(folder: Path) -> tuple[str, str]:
    """What the folder's card calls the model, and what it loads it from; the folder's name where there is no card."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return folder.name, folder.name
    title = re.search("^# (.+)$", text, re.MULTILINE)
    return title[1] if title else folder.name, named_in(text) or folder.name


def _render(facts: Facts) -> dict[str, str]:
    """The files of a card by path, in the order in which they are written."""
    pictures = _pictures(facts)
    paths = {name: f"{PICTURES}/{name}.svg" for name in pictures}
    card = card_markdown(facts, paths)
    page = report_html(facts.name, card.text, {paths[name]: picture for name, picture in pictures.items()})
    return {**{paths[name]: picture.light for name, picture in pictures.items()}, REPORT: page, CARD: str(card)}


def _pictures(facts: Facts) -> dict[str, Picture]:
    """Pictures of what was measured; none, with a warning, where matplotlib is missing."""
    quality = quality_panels(text_rows(facts.numbers), task_rows(facts.numbers))
    speed = speed_panels(benchmarks(facts.numbers))
    layers = make_grid(facts.numbers["layers"]) if facts.numbers.get("layers") else None

    def both(draw: Any, content: Any) -> Picture:
        themes: tuple[Theme, Theme] = (LIGHT, DARK)
        return Picture(*(draw(content, theme) for theme in themes))

    try:
        pictures = {}
        if quality:
            pictures["quality"] = both(draw_pairs, quality)
        if speed:
            pictures["speed"] = both(draw_pairs, speed)
        if layers is not None and layers.is_measured:
            pictures["layers"] = both(draw_layers, layers)
    except ImportError as error:
        logger.warning("The card has no pictures: matplotlib cannot be used (%s).", error)
        return {}
    return pictures


def _read_evaluation(path: Path, facts: Facts) -> dict[str, Any]:
    """What of an evaluation is kept: the numbers, and nothing about the folders of the machine that measured it."""
    content = _read(path, "nm-export evaluate FOLDER --json")
    try:
        measured = content["model"]
        if content["dense"] is None:
            raise UserError(f"{path} holds no dense model's numbers; measure again with --against.")
        same = measured.get("recipe_sha256") == facts.provenance["recipe_sha256"]
        if not same or measured["base_model"]["weights_sha256"] != facts.provenance["base_model"]["weights_sha256"]:
            raise UserError(f"{path} measures another model ({measured['source']}); evaluate this folder.")
        entry = {key: content[key] for key in ("texts", "tasks", "limit", "seed", "versions")}
        entry["model"] = {key: measured[key] for key in ("backend", "recipe_sha256")}
        entry["texts"] = [{**text, "text": text_name(text["text"])} for text in entry["texts"]]
        for rows in (text_rows, written_rows, task_rows):
            rows({"evaluations": [entry]})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no result of `nm-export evaluate FOLDER --json` ({error!r}).") from error
    return entry


def _read_benchmark(path: Path, facts: Facts) -> dict[str, Any]:
    content = _read(path, "nm-export bench FOLDER --json")
    try:
        benchmark = ModelBenchmark.from_dict(content)
        speed_panels([benchmark])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path} is no result of `nm-export bench FOLDER --json` ({error!r}).") from error
    if benchmark.recipe_sha256 != facts.provenance["recipe_sha256"]:
        raise UserError(f"{path} measures another model ({benchmark.title}); run nm-export bench on this folder.")
    return benchmark.to_dict()


def _read(path: Path, command: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a file that `{command}` wrote.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no result of `{command}`.")
    return content


def _replace(folder: Path, files: dict[str, str]) -> None:
    """Write all files under hidden names first, then give each its own."""
    for leftover in folder.glob(".card-*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=".card-", dir=folder))
    try:
        for path, content in files.items():
            (partial / path).parent.mkdir(exist_ok=True)
            (partial / path).write_text(content, encoding="utf-8")
        for path in files:
            (folder / path).parent.mkdir(exist_ok=True)
            (partial / path).replace(folder / path)
        for picture in (folder / PICTURES).glob("*.svg"):
            if f"{PICTURES}/{picture.name}" not in files:
                picture.unlink()
    finally:
        shutil.rmtree(partial, ignore_errors=True)
