"""Publishing with the real client to a Hub on loopback: what arrives there, and what is refused."""

import json
import shlex
from pathlib import Path

import pytest

from nm_export.errors import NMExportError, UserError
from nm_export.exported import find_exported
from nm_export.publishing import upload as upload_module
from nm_export.publishing.hub import command, find_destination, push
from nm_export.publishing.repository import Destination
from nm_export.publishing.settings import publish_settings
from nm_export.recipe import PublishSection, Recipe
from tests.publishing.conftest import verification, weights, write_files
from tests.publishing.hub_server import READ, STRANGER, Blob, Fault

REPO = "user/model"


def publish(folder, repo_id=REPO, **options):
    return push(folder, find_destination(PublishSection(repo_id=repo_id, **options)))


def expected(folder, repo_id=REPO):
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files["README.md"] = files["README.md"].replace(b'"out"', f'"{repo_id}"'.encode())
    return files


def test_one_commit_brings_everything(hub, folder):
    publication = publish(folder)
    repository = hub.repositories[REPO]
    assert repository.files() == expected(folder)
    assert repository.moves == ["main", "main"]  # the Hub's own first commit, and ours
    assert publication.url == f"{hub.url}/{REPO}/commit/{repository.branches['main']}"
    assert publication.page == f"{hub.url}/{REPO}"
    assert str(publication).startswith(f"{hub.url}/{REPO} (11 files sent; read back, equal; ")
    assert (publication.sent, publication.present, publication.deleted) == (11, 0, ())
    assert not repository.private
    assert {blob.lfs for path, blob in repository.commits[repository.branches["main"]].items() if "data" in path} == {
        True
    }


def test_the_same_again_changes_nothing(hub, folder):
    publish(folder)
    uploads = hub.count("PUT", "/storage/")
    publication = publish(folder)
    assert "all 11 files were there already; read back, equal" in str(publication)
    assert hub.repositories[REPO].moves == ["main", "main"]
    assert (hub.count("PUT", "/storage/"), hub.count("POST", "/commit/")) == (uploads, 1)


def test_a_new_version_replaces_the_old_in_one_commit(hub, folder):
    publish(folder)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"weight": "model-00001-of-00001.safetensors"}}
    new = {
        "model-00001-of-00001.safetensors": weights("new", 35_000),
        "model.safetensors.index.json": json.dumps(index),
    }
    write_files(folder, {**new, "config.json": "{}"})
    publication = publish(folder)
    assert (publication.sent, publication.present, publication.deleted) == (3, 9, ("model.safetensors",))
    assert hub.repositories[REPO].files() == expected(folder)
    assert hub.repositories[REPO].moves == ["main"] * 3
    assert hub.count("PUT", "/storage/") == 3  # two of the first version, one of the second


def test_large_files_in_parts(hub, folder):
    hub.part_size = 7_000
    publish(folder)
    assert hub.repositories[REPO].files() == expected(folder)
    assert hub.count("PUT", r"/storage/\w+/\d+") == 6 + 5


@pytest.mark.parametrize("verdict", ["changed after it was cut", "as it was"])
def test_many_files_go_through_a_pull_request_that_is_merged_last(verdict, hub, folder, monkeypatch):
    monkeypatch.setattr(upload_module, "FILES_PER_COMMIT", 4)
    if verdict == "changed after it was cut":
        hub.create(REPO, README__md=b"# soon\n")
        other = hub.repositories[REPO]
        files = {**other.commits[other.branches["main"]], "LICENSE": Blob(b"MIT", lfs=False)}
        hub.faults.append(Fault("POST", "/merge", act=lambda: other.commit("main", files)))
    publish(folder)
    repository = hub.repositories[REPO]
    found = repository.files()
    if verdict == "as it was":
        assert repository.moves == ["main", *["refs/pr/1"] * 3, "main"]
        assert [request.status for request in repository.pull_requests.values()] == ["merged"]
    else:
        assert found.pop("LICENSE") == b"MIT"
        assert [request.status for request in repository.pull_requests.values()] == ["closed", "merged"]
    assert found == expected(folder)


def test_an_interrupted_pull_request_is_continued(hub, folder, monkeypatch):
    monkeypatch.setattr(upload_module, "FILES_PER_COMMIT", 4)
    hub.create(REPO)
    hub.faults.append(Fault("POST", r"/commit/refs%2Fpr%2F1", status=400, after=1))
    with pytest.raises(NMExportError, match=r"The Hub refuses what was sent to user/model \(400 Bad Request"):
        publish(folder)
    assert hub.repositories[REPO].files() == {}
    publish(folder)
    assert hub.repositories[REPO].moves == ["main", *["refs/pr/1"] * 3, "main"]
    assert hub.repositories[REPO].files() == expected(folder)


def test_nobody_slips_into_a_pull_request(hub, folder, monkeypatch):
    """Somebody else's pull request of the right title is not continued."""
    monkeypatch.setattr(upload_module, "FILES_PER_COMMIT", 4)
    hub.create(REPO)
    publish(folder, create_pr=True)
    hub.repositories[REPO].pull_requests[1].author = "stranger"
    publish(folder)
    assert hub.repositories[REPO].pull_requests[1].status == "open"
    assert hub.repositories[REPO].pull_requests[2].status == "merged"


def test_a_pull_request_for_somebody_to_merge(hub, folder, monkeypatch):
    hub.create(REPO)
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    publication = publish(folder, create_pr=True)
    repository = hub.repositories[REPO]
    assert publication.page == publication.url == f"{hub.url}/{REPO}/discussions/1"
    assert publication.revision == "refs/pr/1"
    assert repository.files() == {}
    assert repository.files("refs/pr/1") == expected(folder)
    assert publish(folder, create_pr=True).revision == "refs/pr/1"
    assert (len(repository.pull_requests), repository.pull_requests[1].status) == (1, "open")


def test_a_branch_of_its_own(hub, folder):
    publication = publish(folder, revision="experiments/8of16")
    assert publication.page == f"{hub.url}/{REPO}/tree/experiments/8of16"
    repository = hub.repositories[REPO]
    assert repository.files() == {}
    assert repository.files("experiments/8of16") == expected(folder)
    publish(folder, revision="experiments/8of16")
    assert repository.moves == ["main", "experiments/8of16"]


def test_private_if_asked(hub, folder):
    publish(folder, private=True)
    assert hub.repositories[REPO].private
    publish(folder, private=True)
    hub.create("user/public")
    with pytest.raises(UserError, match="user/public is public, not private"):
        publish(folder, "user/public", private=True)


def test_names(hub):
    recipe = Recipe(model={"source": "mistralai/Mistral"})
    for asked, name in ((None, "user/Mistral-8of16"), ("mine", "user/mine"), ("team/mine", "team/mine")):
        assert find_destination(publish_settings(recipe, repo_id=asked)).repo_id == name


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_somebody_else_wrote_stays(when, hub, folder):
    destination = find_destination(PublishSection(repo_id=REPO))
    hub.create(REPO, pytorch_model__bin=b"theirs", config__json=b"{}")
    with pytest.raises(
        UserError, match=r"holds something that nm-export did not write \(config.json and 1 more files\)"
    ):
        publish(folder) if when == "before" else push(folder, destination)
    assert hub.repositories[REPO].moves == ["main"]
    assert publish(folder, overwrite=True).deleted == ("pytorch_model.bin",)
    assert hub.repositories[REPO].files() == expected(folder)


def test_what_the_hub_puts_there_is_nothing_else(hub, folder):
    hub.create(REPO, README__md=b"---\nlicense: mit\n---\n", LICENSE=b"MIT", __gitignore=b"*.safetensors\n")
    publish(folder)
    assert hub.repositories[REPO].files() == {**expected(folder), "LICENSE": b"MIT", ".gitignore": b"*.safetensors\n"}


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "needs a Hugging Face token: run `hf auth login` or set HF_TOKEN"),
        ("hf_wrong", r"The Hub refuses the token \(401 Unauthorized.*\); run `hf auth login` or set HF_TOKEN"),
        (READ, "The token can only read"),
        (STRANGER, r"The token may not write to user/model \(403 Forbidden: You don't have the rights"),
    ],
)
def test_who_may_not(token, message, hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message):
        publish(folder)
    assert not hub.repositories


def test_nobody_answers(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot reach the Hugging Face Hub \(.*refused.*\); check the network"):
        publish(folder)


def test_an_offline_switch_is_named(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set, and publishing needs .* unset it"):
        publish(folder)


def test_a_command_can_be_copied_whatever_the_folder_is_called():
    words = ["nm-export", "publish", "/tmp/a folder äö", "--repo-id", "you/model", "--private"]
    assert shlex.split(command(Path(words[2]), Destination("you/model", "you", private=True))) == words


def failed(report):
    report["modules"]["onnx_kernel"]["kept_channels_equal"] = False


def unequal(report):
    report["reloaded_logits_equal"] = False


def without_onnx(report):
    del report["modules"]["onnx_kernel"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.clear, r"has not been verified since its last export, .*run `nm-export verify "),
        (failed, "does not say that verification passed"),
        (unequal, "does not say that verification passed"),
        (without_onnx, "does not say that verification passed"),
    ],
)
def test_nothing_is_published_unverified(change, message, hub, folder):
    report = verification()
    change(report)
    (folder / "measurements.json").write_text(json.dumps({"verification": report}))
    with pytest.raises(UserError, match=message):
        publish(folder)
    assert not hub.repositories


def test_only_the_packages_own_code_is_published(hub, folder):
    code = folder / "modeling_nm_sparse.py"
    code.write_bytes(code.read_bytes() + b"import os\n")
    with pytest.raises(UserError, match=r"modeling_nm_sparse\.py is not the code of this nm_export .*Export the model"):
        publish(folder)
    code.write_bytes(code.read_bytes().removesuffix(b"import os\n"))
    write_files(folder, {"onnx/modeling_nm_sparse.py": code.read_bytes()})
    with pytest.raises(UserError, match=r"onnx/modeling_nm_sparse\.py is no file of an export"):
        publish(folder)
    assert not hub.repositories


def test_folders_that_cannot_be_published(hub, folder, tmp_path):
    destination = Destination(REPO, "user")
    write_files(folder, {"onnx/libnm_export_ops.so": b"machine code"})
    with pytest.raises(UserError, match=f"run `nm-export enable-genai {folder} --off` first"):
        push(folder, destination)
    (folder / "onnx" / "libnm_export_ops.so").unlink()
    (folder / "notes.txt").symlink_to(Path("/etc/hostname"))
    with pytest.raises(UserError, match=r"notes\.txt is a link"):
        push(folder, destination)
    (folder / "notes.txt").unlink()
    (folder / "measurements.json").write_text("{")
    with pytest.raises(UserError, match=r"measurements\.json cannot be read"):
        push(folder, destination)
    with pytest.raises(UserError, match="holds no exported model"):
        push(tmp_path, destination)
    assert not hub.requests


def test_hidden_files_stay_at_home(hub, folder):
    wanted = expected(folder)
    write_files(folder, {".cache/token": "secret", "__pycache__/modeling_nm_sparse.cpython-311.pyc": b"code"})
    publish(folder)
    assert hub.repositories[REPO].files() == wanted


@pytest.mark.parametrize("parts", ["all", "torch", "onnx"])
def test_a_model_of_the_hub_comes_with_its_recipe(hub, parts):
    files = {"config.json": b'{"model_type": "nm_sparse"}', "recipe.yaml": b"model: {source: me/base}", "onnx/a": b"a"}
    hub.create("user/tiny", **files)
    assert (find_exported("user/tiny", parts) / "recipe.yaml").read_bytes() == files["recipe.yaml"]
