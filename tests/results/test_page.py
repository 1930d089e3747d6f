"""The page that the numbers are read from."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from nm_export.evaluation import Estimate
from nm_export.results.measured import Measured
from nm_export.results.page import to_markdown, write_page
from tests.results.results import FACTS, measured, row


def _cells(page: str, start: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_states_quality_beside_dense_and_what_it_costs() -> None:
    page = to_markdown([measured("magnitude_8of16", ratio=2.25, added=0.017)], FACTS)
    assert _cells(page, "Magnitude") == [
        *("Magnitude", "45.00", "2.250 ± 0.013", "0.750"),
        *("50.0%", "1.7%", "7 s", "12 kB"),
    ]
    assert _cells(page, "dense")[:4] == ["dense", "20.00", "1", "0"]


def test_tables_are_rectangular() -> None:
    results = [
        measured("magnitude_8of16", tasks={"piqa_jsonl": Estimate(0.6, 0.02)}, drop=Estimate(14.0, 3.0)),
        measured("magnitude_2of4", "2:4"),
        measured("mine_8of16", shipped=True),
    ]
    tables = re.findall(r"(?:^\|.*\|\n?)+", to_markdown(results, FACTS), flags=re.MULTILINE)
    assert len(tables) == 4  # methods, recipes, tasks, patterns
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_methods_with_one_pattern_make_no_line_of_patterns() -> None:
    results = [measured("a_8of16"), measured("b_8of16", ratio=2.0), measured("b_2of4", "2:4", ratio=4.5)]
    patterns = to_markdown(results, FACTS).split("## Patterns that save half")[1]
    assert _cells(patterns, "B") == ["B", "4.500", "", "2.000", "", ""]
    assert "| A " not in patterns.split("##")[0]


def test_tasks_stand_beside_the_dense_model() -> None:
    asked = {"piqa_jsonl": Estimate(0.6, 0.02)}
    page = to_markdown([measured("magnitude_8of16", tasks=asked, drop=Estimate(14.3, 3.1))], FACTS)
    tasks = page.split("## Tasks")[1]
    assert _cells(tasks, "dense") == ["dense", "70.0 ± 3.0 %", "0"]
    assert _cells(tasks, "Magnitude") == ["Magnitude", "60.0 ± 2.0 %", "14.3 ± 3.1 %"]
    assert "200 of the 1,838 questions of PIQA" in tasks


def test_shortened_learning_is_said() -> None:
    page = to_markdown([measured("lpts_8of16", note="32 x 256 tokens instead of 256 x 512")], FACTS)
    assert "| Lpts† |" in page
    assert "† Lpts: 32 x 256 tokens instead of 256 x 512." in page


def test_rows_of_earlier_code_are_marked() -> None:
    page = to_markdown([measured("amber_8of16", older=True), measured("var_8of16")], FACTS)
    assert "| Amber‡ |" in page
    assert "| Var |" in page


def test_what_is_missing_is_said() -> None:
    page = to_markdown([measured("magnitude_8of16"), Measured(row("var_8of16"))], FACTS)
    assert "Not measured yet, or not on every text: var_8of16." in page
    assert "Var" not in page.replace("var_8of16", "")


def test_a_perplexity_that_is_not_finite_is_said() -> None:
    assert "| not finite | not finite |" in to_markdown([measured("magnitude_8of16", ratio=None)], FACTS)


def test_where_and_on_what_it_was_measured() -> None:
    results = [measured("a_8of16"), measured("b_8of16")]
    page = to_markdown([*results, replace(measured("c_8of16"), machine={**results[0].machine, "cores": 8})], FACTS)
    assert "- 2 rows: A, 2 cores, 1 thread; Python 3.11.7, torch 2.13.0" in page
    assert "- 1 row: A, 8 cores" in page
    assert "2 consecutive windows of 32 tokens from the start of `one.txt` (all), SHA-256 of the text read abab" in page
    assert "/somewhere" not in page


def test_the_page_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "results.md"
    write_page(page, Path("results.svg"), [measured("a_8of16")], FACTS)
    before = page.read_text(encoding="utf-8")
    assert "(results.svg)" in before

    def full(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="full"):
        write_page(page, None, [], FACTS)
    assert page.read_text(encoding="utf-8") == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.md"]
