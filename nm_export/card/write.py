"""Write the card of a folder: README.md, its pictures, report.html."""

import errno
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nm_export.benchmark.model import ModelBenchmark
from nm_export.card.facts import Facts, read_facts
from nm_export.card.grid import make_grid
from nm_export.card.hand_edits import Merged, merged, merged_metadata, new_card
from nm_export.card.markdown import card_sections
from nm_export.card.marks import Card, read_card
from nm_export.card.measured import benchmarks, quality_panels, speed_panels, task_rows, text_rows, written_rows
from nm_export.card.metadata import card_metadata
from nm_export.card.pictures import DARK, LIGHT, Theme, draw_layers, draw_pairs
from nm_export.card.report import Picture, report_html
from nm_export.card.tables import text_name
from nm_export.errors import UserError
from nm_export.finished import PICTURES
from nm_export.whole_file import write_whole

logger = logging.getLogger(__name__)

CARD, REPORT = "README.md", "report.html"
_DRAWN = ("quality", "speed", "layers")


def write_card(
    folder: Path, *, name: str, repository: str, own_text: str | None = None, earlier: Path | None = None
) -> None:
    """Write README.md, report.html and the pictures from what else a new folder holds.

    Args:
        folder: the folder, with all but its card.
        name: title of the card.
        repository: what the lines that load the model name: a repository of the Hub or a folder.
        own_text: Markdown that the card shows after its introduction.
        earlier: a folder that the new one replaces. If it was made from the same base model, what somebody wrote into
            its card outside of nm-export's sections is taken over; sections are written anew.

    Raises:
        UserError: a file of the folder is missing or damaged.
    """
    card = _card_of_the_same(folder, earlier) if earlier else None
    title = card.title if card and card.title else name
    facts = read_facts(folder, name=title, repository=repository, own_text=own_text)
    files, _ = _render(facts, card, overwrite=True)
    for path, content in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        write_whole(folder / path, content)


def refresh_card(
    folder: str | Path,
    *,
    evaluations: Sequence[Path] = (),
    speeds: Sequence[Path] = (),
    overwrite: bool = False,
    called: str | None = None,
) -> Path:
    """Write the card of an exported folder again, with further measurements, which measurements.json keeps.

    Everything is made before the first file changes; README.md, with which readers begin, is the last.
    What somebody has written into README.md by hand stays: text outside of nm-export's sections, metadata that were
    added, changed or removed, and, unless they are to be overwritten, sections that were changed or removed, of which a
    warning tells.

    Args:
        folder: a folder that `pipeline.run` wrote.
        evaluations: files of `nm-export evaluate --json`, which take the place of those that the folder has.
        speeds: files of `nm-export bench --json`, likewise.
        overwrite: whether sections that were changed or removed by hand are written anew, and a README.md of somebody
            else, or of a version of nm-export that made no marks, altogether.
        called: name of the folder, if it is going to have another one.

    Returns:
        The card.

    Raises:
        UserError: the folder was not written by an export, its README.md has no marks of nm-export or no valid
            metadata, or a file measures another model or no dense one.
    """
    folder = Path(folder).resolve()
    card = _card_of(folder)
    if card and not card.is_marked and not overwrite:
        raise UserError(
            f"{folder / CARD} has no marks of nm-export: it was written by hand or by an earlier version. --overwrite "
            "writes it anew, without what you have written into it."
        )
    place = called or folder.name
    name, loaded_from = (card.title, card.loaded_from) if card else (None, None)
    # a repository stays, whatever the folder on this machine is called by now
    repository = loaded_from if loaded_from and "/" in loaded_from else place
    facts = read_facts(folder, name=name or place, repository=repository)
    numbers = facts.numbers
    if evaluations:
        numbers["evaluations"] = [_read_evaluation(path, facts) for path in evaluations]
    if speeds:
        numbers["speed"] = [_read_benchmark(path, facts) for path in speeds]
    rendered, kept = _render(facts, card, overwrite=overwrite)
    try:
        _replace(folder, {"measurements.json": json.dumps(numbers, indent=2) + "\n", **rendered})
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"{folder} cannot be written to ({error.strerror}); copy it to a place where it can."
            ) from error
        raise
    if kept:
        logger.warning("%s: %s", folder / CARD, kept)
    return folder / CARD


def is_hand_made(folder: Path) -> bool:
    """Whether the README.md of a folder has no marks of nm-export, so that it is not known what was written by hand."""
    card = _card_of(folder)
    return card is not None and not card.is_marked


def _card_of(folder: Path) -> Card | None:
    path = folder / CARD
    try:
        return read_card(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); it must be a UTF-8 text file.") from error


def _card_of_the_same(folder: Path, earlier: Path) -> Card | None:
    """The card of an earlier export of the same base model, if its hand-written parts are known."""
    try:
        card, weights = _card_of(earlier), []
        for place in (folder, earlier):
            record = json.loads((place / "nm_export.json").read_text(encoding="utf-8"))
            weights.append(record["base_model"]["weights_sha256"])
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None
    return card if card and card.is_marked and weights[0] == weights[1] else None


def _render(facts: Facts, card: Card | None, *, overwrite: bool) -> tuple[dict[str, str], str]:
    """The files of a card by path, in the order in which they are written, and what is kept of an edited one."""
    pictures = _pictures(facts)
    paths = {name: f"{PICTURES}/{name}.svg" for name in pictures}
    metadata = card_metadata(facts)
    if card and card.is_marked:
        facts = _with_licence(facts, metadata, merged_metadata(card, metadata))
    sections = card_sections(facts, paths)
    said = ""
    if card and card.is_marked:
        again = merged(card, sections, metadata, overwrite=overwrite)
        text = again.text
        said = _about(again)
    else:
        before = {key: value for key, value in card.metadata.items() if key not in metadata} if card else {}
        text = new_card(facts.name, sections, {**metadata, **before})
    page = report_html(facts.name, text, {paths[name]: picture for name, picture in pictures.items()})
    files = {**{paths[name]: picture.light for name, picture in pictures.items()}, REPORT: page, CARD: text}
    return files, said


def _with_licence(facts: Facts, metadata: dict[str, Any], values: dict[str, Any]) -> Facts:
    """Facts that name the licence of edited metadata, so that a card does not speak of two."""
    keys = ("license", "license_name", "license_link")
    if not isinstance(values.get("license"), str) or all(values.get(key) == metadata.get(key) for key in keys):
        return facts
    publish = facts.recipe.publish.model_copy(update={key: values.get(key) for key in keys})
    return replace(facts, recipe=facts.recipe.model_copy(update={"publish": publish}))


def _about(card: Merged) -> str:
    """A sentence on what an edited card does not show as nm-export would write it."""
    parts = []
    if card.kept:
        parts.append(f"{' and '.join(card.kept)} changed by hand and kept as found")
    if card.removed:
        parts.append(f"{' and '.join(card.removed)} removed by hand and left out")
    return f"sections {'; '.join(parts)}. --overwrite writes them anew." if parts else ""


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
        own = facts.provenance["base_model"].get("weights_sha256")  # not known of models that were made in Python
        if not same or measured["base_model"].get("weights_sha256") != own:
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
        for name in _DRAWN:  # others are somebody's own
            if f"{PICTURES}/{name}.svg" not in files:
                (folder / PICTURES / f"{name}.svg").unlink(missing_ok=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
