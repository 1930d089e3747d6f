"""Measurements are found again by content, and by nothing else."""

from pathlib import Path

import pytest

from nm_export.results import store
from nm_export.results.store import Store, code_digest


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "_PACKAGE", tmp_path)
    code_digest.cache_clear()
    yield tmp_path
    code_digest.cache_clear()


def _digest(package: Path, code: str) -> str:
    (package / "a.py").write_text(code)
    code_digest.cache_clear()
    return code_digest("*.py")


def test_words_and_layout_of_code_do_not_count(package: Path) -> None:
    plain = _digest(package, "def f(x):\n    return x + 1\n")
    assert _digest(package, '"""Words."""\ndef f(x):\n    """More."""\n    # why\n    return (x + 1)\n') == plain
    assert _digest(package, "def f(x):\n    return x + 2\n") != plain


def test_a_function_of_a_docstring_only_can_be_read(package: Path) -> None:
    assert _digest(package, 'class E(Exception):\n    """Words."""\n')


def test_further_files_count(package: Path) -> None:
    alone = _digest(package, "x = 1\n")
    (package / "b.py").write_text("y = 1\n")
    code_digest.cache_clear()
    assert code_digest("*.py") != alone


def test_what_is_saved_is_found_under_its_key_only(tmp_path: Path) -> None:
    kept = Store(tmp_path / "new")
    kept.save("a", "1" * 64, {"x": 1})
    assert kept.load("a", "1" * 64) == {"x": 1}
    assert kept.load("a", "2" * 64) == {}
    assert kept.load("b", "1" * 64) == {}


def test_a_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    kept.save("a", "1" * 64, {"x": 1})
    next(tmp_path.iterdir()).write_text("{")
    assert kept.load("a", "1" * 64) == {}
