"""The picture: what is drawn, and that the same numbers give the same file."""

import sys
from pathlib import Path

import pytest

from nm_export.errors import UserError
from nm_export.results.picture import draw
from tests.results.results import measured

RESULTS = [
    measured("magnitude_12of16", "12:16", ratio=1.2, saved=0.25),
    measured("magnitude_8of16", ratio=2.2),
    measured("magnitude_2of4", "2:4", ratio=4.5),
    measured("alone_8of16", ratio=2.1),
    measured("smollm2_8of16", ratio=1.4, saved=0.29, shipped=True),
]


def test_the_same_numbers_give_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(tmp_path / "a.svg", RESULTS, "one")
    draw(tmp_path / "b.svg", RESULTS, "one")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_lines_need_several_points_and_recipes_are_named(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(tmp_path / "a.svg", RESULTS, "one")
    words = [line.strip() for line in (tmp_path / "a.svg").read_text().splitlines() if line.strip().startswith("<!--")]
    assert words.count("<!-- Magnitude -->") == 2  # a line in each half
    assert "<!-- recipe smollm2_8of16 -->" in words
    assert "<!-- Alone -->" not in words


def test_rows_without_the_text_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(tmp_path / "a.svg", [measured("magnitude_8of16", ratio=None)], "another")
    assert "<!-- Magnitude -->" not in (tmp_path / "a.svg").read_text()


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"nm_export\[docs\]"):
        draw(tmp_path / "a.svg", RESULTS, "one")
