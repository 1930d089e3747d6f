"""What kind of source a text is."""

from pathlib import Path

import pytest

from nm_export.errors import UserError
from nm_export.recipe import ModelSection
from nm_export.sources import resolve_source


def test_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "file.GGUF").touch()
    assert resolve_source(ModelSection(source="org/other")).kind == "hub"
    assert resolve_source(ModelSection(source="gpt2")).kind == "hub"
    assert resolve_source(ModelSection(source="org/model")).kind == "folder", "a folder that exists wins over the Hub"
    assert resolve_source(ModelSection(source="file.GGUF")).kind == "gguf"
    assert resolve_source(ModelSection(source="sample:smollm2-135m-instruct")).kind == "sample"


def test_hub_ids_of_the_base() -> None:
    assert resolve_source(ModelSection(source="org/other")).base_model == "org/other"
    sample = resolve_source(ModelSection(source="sample:smollm2-135m-instruct"))
    assert sample.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("sample:smollm3", "sample:smollm2-135m-instruct"),
        ("missing.gguf", "there is no file missing.gguf"),
        ("/no/such/folder", "neither an existing folder nor a Hub id"),
        ("https://huggingface.co/org/model", "neither"),
        ("a b", "neither"),
        ("../up", "neither"),
    ],
)
def test_texts_that_are_no_source(source: str, part: str) -> None:
    with pytest.raises(UserError, match=r"^model\.source") as caught:
        resolve_source(ModelSection(source=source))
    assert part in str(caught.value)


def test_only_the_hub_has_revisions(tmp_path: Path) -> None:
    assert resolve_source(ModelSection(source="org/other", revision="v1")).section.revision == "v1"
    for source in (str(tmp_path), "sample:smollm2-135m-instruct"):
        with pytest.raises(UserError, match=r"^model\.revision is for Hub models"):
            resolve_source(ModelSection(source=source, revision="v1"))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(UserError, match="is a file"):
        resolve_source(ModelSection(source=str(path)))
