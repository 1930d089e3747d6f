"""The word for a recipe or a model, and where an exported model is found."""

import json
from pathlib import Path

import pytest

from nm_export import exported
from nm_export.errors import UserError
from nm_export.exported import check_exported, find_exported, is_repository
from nm_export.recipe.naming import is_model, name_recipe


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, kind in (("dense", "llama"), ("sparse", "nm_sparse")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "recipe.yaml").write_text("model: {source: a/b}\nsparsity: {pattern: 2:4}\n")
    return tmp_path


@pytest.mark.parametrize("word", ["dense", "some/model", "model.gguf", "sample:smollm2-135m-instruct"])
def test_a_model_is_a_recipe_of_one_key(word, capsys):
    recipe, output_dir = name_recipe(word, ["sparsity.pattern=4:8", "output_dir=/data/out"])
    assert (recipe.model.source, recipe.sparsity.pattern, output_dir) == (word, "4:8", "/data/out")
    assert f"{word} is a model" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["recipe.yaml", "empty", "empty/model", "nowhere.yml"])
def test_what_is_no_model(word):
    assert not is_model(word)


def test_an_exported_folder_is_not_exported_again():
    with pytest.raises(UserError, match="sparse was exported already; the commands for it are generate"):
        name_recipe("sparse", ())


def test_whoever_runs_a_recipe_says_where_it_writes():
    """With `--set` as with `--output-dir`; the recipe stays what it was, and shows no place of this machine."""
    recipe, output_dir = name_recipe("recipe.yaml", ["output_dir=/data/out", "sparsity.pattern=4:8"])
    assert (recipe.output_dir, output_dir, recipe.sparsity.pattern) == (None, "/data/out", "4:8")


def test_an_absolute_folder_below_the_working_directory_is_inside_it(place):
    (place / "recipe.yaml").write_text(f"model: {{source: a/b}}\noutput_dir: {place}/deep/out\n")
    recipe, _ = name_recipe("recipe.yaml", ())
    assert recipe.output_dir == "deep/out"
    assert recipe.folder().resolve() == place / "deep" / "out"
    (place / "recipe.yaml").write_text(f"model: {{source: a/b}}\noutput_dir: {place}/../out\n")
    with pytest.raises(UserError, match=r"lies outside of the working directory.*--output-dir"):
        name_recipe("recipe.yaml", ())


def test_repositories_have_an_owner_and_no_folder_of_that_name():
    assert is_repository("some/model")
    assert not any(map(is_repository, ("model", "empty/model", "./some", "a/b/c", "some/model/")))


def test_a_repository_is_fetched_when_its_configuration_is_right(monkeypatch, place):
    fetched = []
    monkeypatch.setattr("nm_export.sources.hub.fetch_config", lambda section: place / section.source.split("/")[1])
    monkeypatch.setattr(exported, "_fetch", lambda section, parts: fetched.append((section.source, parts)) or Path("x"))
    assert find_exported("sparse") == Path("sparse")
    assert find_exported("me/sparse", "onnx") == Path("x")
    with pytest.raises(UserError, match="holds a llama model"):
        find_exported("me/dense")
    assert fetched == [("me/sparse", "onnx")]


def test_what_needs_a_folder_says_how_a_repository_becomes_one():
    with pytest.raises(UserError, match="hf download me/sparse --local-dir FOLDER"):
        check_exported("me/sparse", doing="publish")
    check_exported("me/sparse", name_will_do=True)
