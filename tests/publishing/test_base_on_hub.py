"""A model that leaves weights to its base model is published only where readers find these weights."""

import json

import pytest

from nm_export.errors import UserError
from nm_export.publishing.base_weights import find_base_weights
from nm_export.publishing.hub import find_destination, push
from nm_export.recipe import ModelSection, PublishSection
from tests.publishing.conftest import content
from tests.publishing.hub_server import Blob, Fault

BASE = Blob(content("base", 20_000), lfs=True)


@pytest.fixture
def base(hub):
    """A base model on the Hub; what `config.json` says about it."""
    repository = hub.create("user/base")
    hub.objects[BASE.sha256] = BASE.content
    commit = repository.commit("main", {"model.safetensors": BASE})
    files = {"model.safetensors": {"size": len(BASE.content), "sha256": BASE.sha256}}
    return {"repo_id": "user/base", "revision": commit, "files": files, "new_files": {}}


def publish(folder, base, **options):
    (folder / "config.json").write_text(json.dumps({"model_type": "nm_sparse", "base_weights": base}))
    return push(folder, find_destination(PublishSection(repo_id="user/model", **options)))


def test_there_it_is(hub, folder, base):
    hub.faults.append(Fault("POST", "paths-info", status=429, headers={"Retry-After": "7"}))
    assert publish(folder, base).sent
    assert max(hub.pauses) == 7


def test_a_base_model_that_not_all_readers_may_read(hub, folder, base, caplog):
    hub.repositories["user/base"].private = True
    publish(folder, base, private=True)
    assert not caplog.records
    hub.repositories["user/model"].private = False
    publish(folder, base)
    assert "user/base is private: only those who may read it can load user/model" in caplog.text


def test_pickled_weights_are_refused_and_not_fetched(hub):
    repository = hub.create("user/old", config__json=b"{}")
    repository.commit("main", {"config.json": Blob(b"{}", lfs=False), "pytorch_model.bin": Blob(b"pickle", lfs=False)})
    with pytest.raises(UserError, match="the Hub model user/old has no weights"):
        find_base_weights(ModelSection(source="user/old"))
    assert hub.count("GET", "/resolve/.*config")
    assert not hub.count("GET", "/resolve/.*bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "/home/author/base"}, "would leave its weights to the folder /home/author/base, which its readers"),
        ({"repo_id": "user/none"}, r"The base model user/none at \w+ is not on the Hub"),
        ({"revision": "0" * 40}, r"The base model user/base at 0{40} is not on the Hub"),
        ({"files": {"other.safetensors": {"size": 1, "sha256": ""}}}, r"has no other\.safetensors"),
        ({"files": {"model.safetensors": {"size": 1, "sha256": BASE.sha256}}}, r"has another model\.safetensors"),
        ({"files": {"model.safetensors": {"size": 20_000, "sha256": "0" * 64}}}, r"has another model\.safetensors"),
    ],
)
def test_readers_would_not_find_it(change, message, hub, folder, base):
    with pytest.raises(UserError, match=message):
        publish(folder, base | change)
    assert "user/model" not in hub.repositories
