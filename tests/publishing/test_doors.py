"""Every key of a recipe's `publish` section counts, whichever way publishing is asked for."""

import contextlib
from dataclasses import fields

import pytest
import yaml
from typer.testing import CliRunner

from nm_export import dry_run as dry_run_module
from nm_export import pipeline
from nm_export.cli import app
from nm_export.errors import UserError
from nm_export.publishing.hub import find_destination
from nm_export.publishing.repository import Destination
from nm_export.publishing.settings import publish_settings
from nm_export.recipe import PublishSection, Recipe, load_recipe
from tests.optimum_plugin.test_command import run as optimum
from tests.publishing.conftest import write_files

ASKED = {
    "repo_id": "team/mine",
    "revision": "experiments/8of16",
    "private": True,
    "create_pr": True,
    "overwrite": True,
    "commit_message": "A sparse model",
    "max_shard_size": "1GB",
    "weights": "reference",
    "license": "other",
    "license_name": "own-terms",
    "license_link": "https://example.org/terms",
    "language": ["de", "en"],
    "tags": ["poems"],
    "base_model": ["Qwen/Qwen2-0.5B"],
    "card_text": "about.md",
}
"""Of every key a value that is not its default."""


class StoppedError(Exception):
    """Where the Hub would be asked."""


@pytest.fixture
def arrived(monkeypatch, tmp_path):
    """What reaches the place where the Hub is asked; nothing goes on from there."""
    found = []

    def stop(settings):
        found.append(settings)
        raise StoppedError

    monkeypatch.setattr(pipeline, "find_destination", stop)
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, {"about.md": "Poems.\n"})
    return found


def recipe_file(tmp_path, publish):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": {"source": "some/base"}, "publish": publish}))
    return path


def by_python(tmp_path, folder, publish):
    pipeline.run(load_recipe(recipe_file(tmp_path, publish)), output_dir=tmp_path / "new", push_to_hub=True)


def by_recipe(tmp_path, folder, publish):
    words = [str(recipe_file(tmp_path, publish)), "--output-dir", str(tmp_path / "new"), "--push-to-hub"]
    CliRunner().invoke(app, words)


def by_settings(tmp_path, folder, publish):
    words = [str(recipe_file(tmp_path, {})), "--output-dir", str(tmp_path / "new"), "--push-to-hub"]
    for key, value in publish.items():
        words += ["--set", f"publish.{key}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}"]
    CliRunner().invoke(app, words)


def by_optimum(tmp_path, folder, publish):
    with pytest.raises(SystemExit):
        optimum(recipe_file(tmp_path, publish), tmp_path / "new", "--push-to-hub")


def by_folder(tmp_path, folder, publish):
    (folder / "recipe.yaml").write_text(recipe_file(tmp_path, publish).read_text())
    pipeline.publish_folder(folder)


def by_publish(tmp_path, folder, publish):
    (folder / "recipe.yaml").write_text(recipe_file(tmp_path, publish).read_text())
    CliRunner().invoke(app, ["publish", str(folder)])


DOORS = [by_python, by_recipe, by_settings, by_optimum, by_folder, by_publish]


def test_every_key_has_a_value_here():
    assert ASKED.keys() == PublishSection.model_fields.keys()
    default = PublishSection()
    assert not [key for key, value in ASKED.items() if getattr(default, key) == value]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("key", PublishSection.model_fields)
def test_a_key_of_the_recipe_arrives(key, door, arrived, tmp_path, folder):
    publish = {key: ASKED[key]}
    if key.startswith("license_"):
        publish["license"] = "other"
    with contextlib.suppress(StoppedError):
        door(tmp_path, folder, publish)
    [settings] = arrived
    expected = {"repo_id": "base-8of16", **publish}
    assert settings == PublishSection(**expected)


@pytest.mark.parametrize("key", [field.name for field in fields(Destination) if field.name != "user"])
def test_a_key_reaches_the_hub(key, hub):
    hub.create("team/mine", private=True)
    settings = publish_settings(Recipe(model={"source": "some/base"}, publish=ASKED))
    assert getattr(find_destination(settings), key) == ASKED[key]


@pytest.mark.parametrize("key", ["repo_id", "revision", "private", "create_pr", "overwrite"])
def test_options_and_recipe_say_the_same(key):
    by_option = publish_settings(Recipe(model={"source": "some/base"}), **{key: ASKED[key]})
    by_key = publish_settings(Recipe(model={"source": "some/base"}, publish={key: ASKED[key]}))
    assert by_option == by_key
    assert getattr(by_key, key) == ASKED[key]


def test_a_dry_run_names_the_repository(tmp_path, tiny_source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(model={"source": str(tiny_source)}, publish={"repo_id": "team/mine", "private": True})
    *_, step, _ = dry_run_module.dry_run(recipe, push_to_hub=True).steps
    assert step.startswith("publish the folder as team/mine (private) on the Hugging Face Hub")
    named = dry_run_module.dry_run(Recipe(model={"source": str(tiny_source)}), push_to_hub=True, private=True)
    assert any(step.startswith("publish the folder as tiny-8of16 (private)") for step in named.steps)


@pytest.mark.parametrize("name", ["user/my model", "a/b/c", "user/-x", "user/a--b", "user/a..b", "user/x.git", "ä/b"])
def test_names_that_the_hub_refuses_are_said_at_once(name, arrived, tmp_path, folder):
    with pytest.raises(UserError, match=r"publish\.repo_id: .* is not a repository name"):
        load_recipe(recipe_file(tmp_path, {"repo_id": name}))
    recipe = Recipe(model={"source": "some/base"})
    for call in (pipeline.run, dry_run_module.dry_run):
        with pytest.raises(UserError, match=r"--repo-id: .* is not a repository name"):
            call(recipe, output_dir=tmp_path / "new", push_to_hub=True, repo_id=name)
    with pytest.raises(UserError, match=r"--repo-id: .* is not a repository name"):
        pipeline.publish_folder(folder, repo_id=name)
    assert not arrived


def test_a_model_whose_name_is_no_repository_needs_another(arrived, tmp_path):
    recipe = Recipe(model={"source": "models/größer"})
    with pytest.raises(UserError, match=r"called like the model, and 'größer-8of16' is not .* give --repo-id"):
        pipeline.run(recipe, output_dir=tmp_path / "new", push_to_hub=True)
    with pytest.raises(UserError, match="--revision: 'my branch' is not the name of a branch"):
        pipeline.run(recipe, output_dir=tmp_path / "new", push_to_hub=True, repo_id="a/b", revision="my branch")
