"""`python -m nm_export.results`: measure what is missing, then write the page and its picture."""

from pathlib import Path
from typing import Annotated

import typer

from nm_export.calibration.documents import BUILTIN
from nm_export.errors import NMExportError, UserError
from nm_export.results.rows import Row, read_rows

WINDOWS, WINDOW = 24, 512
WIKITEXT = "WikiText-2"


def main(
    wikitext: Annotated[
        Path | None, typer.Option(help="WikiText-2 validation text, a file; without it only the python docs are read.")
    ] = None,
    task_data: Annotated[
        Path | None, typer.Option(help="Folder with piqa_valid_labeled.jsonl and ARC-Easy-Dev.jsonl; none: no tasks.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder of what has been measured.")] = Path("docs/results"),
    recipes: Annotated[Path, typer.Option(help="Folder of the recipes.")] = Path("recipes"),
    page: Annotated[Path, typer.Option(help="Page to write; the picture is written beside it.")] = Path(
        "docs/results.md"
    ),
    calibration: Annotated[
        str | None,
        typer.Option(help="Text that replaces every recipe's calibration dataset, read whole (.txt, .jsonl)."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Measure only rows of these names; wildcards. May be repeated.")
    ] = None,
    skip_learned: Annotated[bool, typer.Option("--skip-learned", help="Measure no row that trains something.")] = False,
    learned_samples: Annotated[
        int, typer.Option(min=1, help="Sequences that the paper's learned methods are trained on here.")
    ] = 32,
    learned_length: Annotated[int, typer.Option(min=2, help="Tokens in each of them.")] = 256,
    windows: Annotated[int, typer.Option(min=1, help="Windows of each text.")] = WINDOWS,
    limit: Annotated[int, typer.Option(min=1, help="Examples of each task.")] = 100,
    measure: Annotated[bool, typer.Option(help="Measure; otherwise write the page from what is there.")] = True,
) -> None:
    """Measure every method under one protocol, row by row, and write docs/results.md.

    Rows are kept as they are finished, in docs/results: the same command goes on where it was interrupted, and measures
    again only what has changed since (recipe, weights, text, code).
    """
    try:
        rows = read_rows(recipes, calibration=calibration, learning=(learned_samples, learned_length))
        texts = {WIKITEXT: str(wikitext)} if wikitext is not None else {}
        _run(
            rows,
            {**texts, "python docs": BUILTIN},
            cache=cache,
            page=page,
            task_data=task_data,
            windows=windows,
            limit=limit,
            chosen=_chosen(rows, only, skip_learned) if measure else [],
            calibration=calibration,
        )
    except NMExportError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error


def _chosen(rows: list[Row], only: list[str] | None, skip_learned: bool) -> list[Row]:
    from fnmatch import fnmatchcase

    chosen = [row for row in rows if only is None or any(fnmatchcase(row.name, name) for name in only)]
    if not chosen:
        raise UserError(f"--only matches no row; there are {', '.join(row.name for row in rows)}")
    return [row for row in chosen if not (skip_learned and row.learned)]


def _command(texts: dict[str, str], task_data: Path | None, calibration: str | None) -> str:
    """What a reader types, with the reader's own copies of what is not shipped."""
    words = ["make results"]
    words += [f"WIKITEXT={Path(text).name}" for title, text in texts.items() if title == WIKITEXT]
    words += [f"TASK_DATA={task_data.name}"] if task_data is not None else []
    words += [f"CALIBRATION={Path(calibration).name}"] if calibration is not None else []
    return " ".join(words)


def _run(
    rows: list[Row],
    texts: dict[str, str],
    *,
    cache: Path,
    page: Path,
    task_data: Path | None,
    windows: int,
    limit: int,
    chosen: list[Row],
    calibration: str | None,
) -> None:
    from transformers.utils import logging as transformers_logging

    from nm_export.results.measure import Bench
    from nm_export.results.page import write_page
    from nm_export.results.picture import draw, require_matplotlib
    from nm_export.results.store import Store

    require_matplotlib()  # said before hours of work
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    bench = Bench(
        rows[0].recipe.model, Store(cache), texts, windows=windows, window=WINDOW, task_data=task_data, limit=limit
    )
    if chosen:
        bench.measure_dense_tasks()
    for number, row in enumerate(chosen, 1):
        state = "is there" if bench.complete(row) else "measuring"
        typer.echo(f"[{number}/{len(chosen)}] {row.name}: {state}", err=True)
        bench.measure(row)
    picture = page.with_suffix(".svg")
    results = [bench.measured(row) for row in rows]
    draw(picture, results, next(iter(texts)))
    write_page(page, picture, results, bench.facts(_command(texts, task_data, calibration)))
    typer.echo(f"Wrote {page} and {picture}", err=True)


if __name__ == "__main__":
    typer.run(main)
