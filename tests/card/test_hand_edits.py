"""What somebody writes into README.md by hand stays there, whoever writes the card again."""

import logging
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from nm_export import pipeline
from nm_export.card import refresh_card
from nm_export.card.marks import as_read, read_card
from nm_export.card.naming import renamed
from nm_export.cli import app
from nm_export.errors import UserError
from nm_export.publishing.contents import read_contents
from tests.card.test_card import as_file, benchmark, contents, evaluation
from tests.tiny_folder import tiny_recipe

TITLE = "# Poems, sparse\n\nWritten with love.\n\n<!-- nm_export:begin introduction"
END = '\n\n## About the author\n\n```python\nmodel = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2-0.5B")\n```\n'


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """A copy of the exported folder that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / exported.name))


def edit(folder, *changes):
    card = folder / "README.md"
    text = card.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    card.write_text(text)


def by_hand(folder):
    """A title, text in front of and behind what nm-export wrote, a licence, a further tag, a comment, one tag less."""
    edit(
        folder,
        (f"# {folder.name}\n\n<!-- nm_export:begin introduction", TITLE),
        ("---\n", "---\nlicense: cc-by-4.0\nlanguage: de\n"),
        ("- sparsity\n", "- poems\n"),
        ("<!-- nm_export:begin limits", "A word between.\n\n<!-- nm_export:begin limits"),
        ("pipeline_tag: text-generation\n", ""),
    )
    (folder / "README.md").write_text((folder / "README.md").read_text() + END)


def is_kept(folder):
    text, data = (folder / "README.md").read_text(), ModelCard.load(folder / "README.md").data
    assert TITLE in text
    assert END.strip() in text
    assert "A word between.\n\n<!-- nm_export:begin limits" in text
    assert (data.license, data.language, data.pipeline_tag) == ("cc-by-4.0", "de", None)
    assert data.tags[:2] == ["poems", "nm-sparsity"]


def test_text_and_metadata_stay(folder, tmp_path):
    by_hand(folder)
    bench = as_file(tmp_path / "b.json", benchmark(folder))
    command = ["card", str(folder), "--bench", str(bench)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    is_kept(folder)
    assert "| decode, onnxruntime-genai | 64 | 20.0 | 25.0 |" in (folder / "README.md").read_text()
    page = (folder / "report.html").read_text()
    assert "Written with love." in page
    assert "nm_export:begin" not in page
    assert ModelCard.load(folder / "README.md").data.model_name == "Poems, sparse"
    again = contents(folder)
    refresh_card(folder)
    assert contents(folder) == again


def test_a_card_speaks_of_the_licence_that_was_written_into_it(folder):
    edit(folder, ("---\n", "---\nlicense: other\nlicense_name: poets-own\nlicense_link: https://example.org/own\n"))
    refresh_card(folder)
    assert "licence of this model: poets-own (https://example.org/own); of the" in (folder / "README.md").read_text()
    edit(folder, ("license: other\nlicense_name: poets-own\nlicense_link: https://example.org/own\n", "license: mit\n"))
    refresh_card(folder)
    assert "licence of this model: mit; of the base model" in (folder / "README.md").read_text()


def test_new_numbers_come_into_metadata_that_nobody_changed(folder, tmp_path):
    by_hand(folder)
    refresh_card(folder, evaluations=[as_file(tmp_path / "e.json", evaluation(folder))])
    is_kept(folder)
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert {result.dataset_name for result in results} == {"builtin:python-docs", "wiki.txt", "piqa"}


def test_an_edited_section_is_kept_unless_it_is_to_be_overwritten(folder, caplog):
    edit(folder, ("## Limits\n", "## Limits\n\n- It rhymes.\n"), ("---\n", "---\nlicense: mit  # as the poems\n"))
    with caplog.at_level(logging.WARNING):
        refresh_card(folder)
    assert "sections limits changed by hand and kept as found. --overwrite writes them anew." in caplog.text
    assert "It rhymes." in (folder / "README.md").read_text()
    refresh_card(folder)
    assert "It rhymes." in (folder / "README.md").read_text()
    result = CliRunner().invoke(app, ["card", str(folder), "--overwrite"])
    assert result.exit_code == 0, result.output
    assert "It rhymes." not in (folder / "README.md").read_text()
    assert "license: mit  # as the poems" in (folder / "README.md").read_text()


def test_a_removed_section_stays_away_unless_it_is_to_be_overwritten(folder, caplog):
    text = (folder / "README.md").read_text()
    start, end = text.index("<!-- nm_export:begin limits"), text.index("<!-- nm_export:begin origin")
    (folder / "README.md").write_text(text[:start] + text[end:])
    refresh_card(folder)
    assert "limits removed by hand and left out" in caplog.text
    refresh_card(folder)
    assert "## Limits" not in (folder / "README.md").read_text()
    refresh_card(folder, overwrite=True)
    assert (folder / "README.md").read_text() == text


def test_a_new_section_comes_where_it_belongs(folder, tmp_path, monkeypatch):
    before = (folder / "README.md").read_text()
    card = read_card(before, "README.md")
    without = re.sub(r"<!-- nm_export:begin layers.*?end layers -->\n\n", "", before, flags=re.DOTALL)
    (folder / "README.md").write_text(without.replace('"layers", ', ""))
    assert read_card((folder / "README.md").read_text(), "").section("layers") is None
    refresh_card(folder)
    assert (folder / "README.md").read_text() == before
    assert card.section("layers")


def test_a_card_without_marks_is_not_overwritten(folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n\nAll by hand.\n")
    before = contents(folder)
    result = CliRunner().invoke(app, ["card", str(folder)])
    assert result.exit_code == 2
    assert "has no marks of nm-export: it was written by hand or by an earlier version. --overwrite" in result.stderr
    assert contents(folder) == before
    refresh_card(folder, overwrite=True)
    assert ModelCard.load(folder / "README.md").data.license == "mit"
    assert "All by hand" not in (folder / "README.md").read_text()


def test_a_conversion_keeps_what_was_written(folder, tmp_path, caplog):
    by_hand(folder)
    words = ["convert", str(folder), str(tmp_path / "small"), "--weights", "reference", "--skip-onnx"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    is_kept(tmp_path / "small")


def test_a_conversion_copies_a_card_without_marks(folder, tmp_path, caplog):
    (folder / "README.md").write_text("# Mine\n")
    words = ["convert", str(folder), str(tmp_path / "small"), "--weights", "reference", "--skip-onnx"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "small" / "README.md").read_text() == "# Mine\n"
    assert "README.md has no marks of nm-export and was copied as it is" in caplog.text


def test_an_export_in_the_place_of_another_keeps_text_but_no_stale_section(tiny_source, tmp_path):
    settings = {"verify": {"enabled": False}, "evaluation": {"enabled": False}}
    recipe = tiny_recipe(tiny_source, publish={"tags": ["a"]}, **settings)
    folder = pipeline.run(recipe, output_dir=tmp_path / "tiny", skip_onnx=True).folder
    edit(folder, ("## Limits\n", "## Limits\n\n- Stale.\n"), ("# tiny\n", "# Poems\n\nWith love.\n"))
    again = tiny_recipe(tiny_source, sparsity={"pattern": "4:8"}, **settings)
    pipeline.run(again, output_dir=folder, skip_onnx=True, overwrite=True)
    text = (folder / "README.md").read_text()
    assert "# Poems\n\nWith love.\n" in text
    assert "Stale." not in text
    assert "4 of every 8" in text


def test_only_the_models_own_name_changes_when_it_is_published(folder):
    by_hand(folder)
    published = read_contents(folder, "you/poems")["README.md"].source.decode()
    assert published.count('"you/poems"') == 5
    assert 'from_pretrained("Qwen/Qwen2-0.5B")' in published
    sections = read_card(published, "README.md").blocks
    assert not any(block.is_edited for block in sections), "a downloaded card is as it was written"


def test_a_moved_folder_is_loaded_by_its_new_name(folder):
    moved = folder.rename(folder.parent / "ein Ordner äö")
    refresh_card(moved)
    text = (moved / "README.md").read_text()
    assert text.count('"ein Ordner äö"') == 5
    (moved / "README.md").write_text(renamed(text, moved.name, "you/poems"))
    refresh_card(moved.rename(folder))
    assert (folder / "README.md").read_text().count('"you/poems"') == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "---\nlicense: [\n---\n\n# A\n",
            r"README\.md, line \d+: the metadata .* is not valid YAML",
        ),
        ("---\n- a\n---\n\n# A\n", "is no mapping of keys to values"),
        (b"\xff\xfe", r"README\.md cannot be read .* must be a UTF-8 text file"),
    ],
)
def test_a_broken_card_is_one_sentence(text, message, folder):
    (folder / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        refresh_card(folder)


def test_windows_line_ends_and_spaces_are_no_edits(folder, caplog):
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_bytes(text.replace("## Limits\n", "## Limits  \n").replace("\n", "\r\n").encode())
    refresh_card(folder)
    assert not caplog.text
    assert (folder / "README.md").read_text() == text


def test_a_folder_that_cannot_be_written_to_is_one_sentence(folder, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("nm_export.card.write.tempfile.mkdtemp", refuse)
    with pytest.raises(UserError, match=r"cannot be written to \(Permission denied\); copy it to a place where it can"):
        refresh_card(folder)


def test_a_reader_sees_no_marks(exported):
    text = as_read((exported / "README.md").read_text())
    assert "nm_export:" not in text
    assert text.startswith(f"# {exported.name}\n")
