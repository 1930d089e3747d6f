"""Models of the Hub: a snapshot in the cache loads without network; every refusal of the Hub is one sentence."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, errors

from nm_export.errors import UserError
from nm_export.recipe import ModelSection
from nm_export.sources import SourceUnavailableError, hub, load_config_only, load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model as the Hub's client caches it: blobs, a snapshot of symbolic links, a reference."""
    cache = tmp_path / "hub"
    repository = cache / "models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(tiny_folder.iterdir())):
        shutil.copy(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def test_a_cached_model_needs_no_network(hub_cache: Path) -> None:
    section = ModelSection(source="org/tiny")
    assert load_config_only(section).num_hidden_layers == 2
    loaded = load_model(section)
    assert loaded.provenance["revision"] == COMMIT
    assert loaded.provenance["base_model"] == "org/tiny"
    assert loaded.model.config.name_or_path == "org/tiny"


def test_no_network_and_no_copy(hub_cache: Path) -> None:
    for load in (load_config_only, load_model):
        with pytest.raises(SourceUnavailableError, match=r"org/other is no local folder.*check the network") as caught:
            load(ModelSection(source="org/other"))
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceUnavailableError, match="org/tiny@v2"):
        load_config_only(ModelSection(source="org/tiny", revision="v2"))


@pytest.mark.parametrize(
    ("error", "kind", "part"),
    [
        (errors.GatedRepoError, SourceUnavailableError, "is gated"),
        (errors.RepositoryNotFoundError, UserError, "does not exist on the Hugging Face Hub, or is private"),
        (errors.RevisionNotFoundError, UserError, "no branch, tag or commit 'v9'"),
        (errors.HfHubHTTPError, SourceUnavailableError, "cannot be fetched"),
    ],
)
def test_what_the_hub_refuses(
    monkeypatch: pytest.MonkeyPatch, error: type[errors.HfHubHTTPError], kind: type[UserError], part: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        # The Hub's client has changed its HTTP library before; the errors look at nothing but these.
        response = SimpleNamespace(
            headers={}, status_code=404, request=SimpleNamespace(headers={}, url="", method="GET")
        )
        raise error("several\nlines", response=response)  # type: ignore[arg-type]

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(kind, match=r"^model\.") as caught:
        load_config_only(ModelSection(source="org/tiny", revision="v9"))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_not_a_missing_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/cache/blob")

    monkeypatch.setattr(hub, "snapshot_download", full)
    with pytest.raises(UserError, match=r"cannot be stored at /cache/blob: No space left"):
        load_config_only(ModelSection(source="org/tiny"))
