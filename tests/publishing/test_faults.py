"""The Hub and the line fail in every way: what heals by itself, and otherwise one sentence, an exit code, a rerun."""

import re

import huggingface_hub
import pytest
from typer.testing import CliRunner

from nm_export.cli import app
from nm_export.publishing import hub_requests
from tests.publishing.hub_server import Blob, Fault

REPO = "user/model"
USER, OURS, FOREVER = 2, 1, 1000


def publish(folder):
    return CliRunner().invoke(app, ["publish", str(folder), "--repo-id", REPO])


def succeeds(hub, folder):
    result = publish(folder)
    assert result.exit_code == 0, result.output
    assert "read back, equal" in result.stdout
    repository = hub.repositories[REPO]
    assert repository.files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert repository.files().keys() == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    }
    return repository


HEALING = {
    "429 at the first question": Fault("GET", "whoami", status=429, headers={"Retry-After": "7"}),
    "429 at a new repository": Fault("POST", "repos/create", status=429, headers={"Retry-After": "7"}),
    "429 at an upload": Fault("PUT", "/storage/", status=429, headers={"Retry-After": "7"}),
    "429 at a commit": Fault("POST", "/commit/", status=429, headers={"Retry-After": "7"}),
    "500 at the card": Fault("POST", "validate-yaml", status=500),
    "500 at an upload": Fault("PUT", "/storage/", status=500, times=2),
    "503 at a commit": Fault("POST", "/commit/", status=503, times=2),
    "504 at a list": Fault("GET", "/tree/", status=504),
    "upload cut": Fault("PUT", "/storage/", cut="request", times=2),
    "commit cut": Fault("POST", "/commit/", cut="request"),
    "answer to a commit lost": Fault("POST", "/commit/", cut="answered"),
    "answer to a new repository lost": Fault("POST", "repos/create", cut="answered"),
    "download reset": Fault("GET", "/resolve/.*config.json", cut="response"),
    "download cut": Fault("GET", "/resolve/.*config.json", cut="end"),
}


@pytest.mark.parametrize("name", HEALING)
def test_what_passes_is_waited_out(name, hub, folder):
    fault = HEALING[name]
    remaining = fault.times
    hub.faults.append(fault)
    repository = succeeds(hub, folder)
    assert not fault.times
    assert repository.moves == ["main", "main"]
    assert len(hub.pauses) >= remaining - (name == "answer to a commit lost")
    if fault.status == 429:
        assert max(hub.pauses) >= 7
    fault.times = remaining


STOPPING = {
    "401": (
        Fault("POST", "/commit/", status=401, message="Token revoked"),
        USER,
        r"The Hub refuses the token \(401 Una",
    ),
    "403": (
        Fault("POST", "/preupload/", status=403, message="No"),
        USER,
        r"token may not write to user/model \(403 Forb",
    ),
    "409": (
        Fault("POST", "/commit/", status=409),
        OURS,
        r"Somebody else changes user/model at the same time \(409 Conf",
    ),
    "429": (
        Fault("POST", "/commit/", status=429, headers={"Retry-After": "3600"}),
        OURS,
        r"The Hub wants fewer requests \(429 Too Many Requests\); in 3600 s, continue with",
    ),
    "500 at a commit": (Fault("POST", "/commit/", status=500), OURS, r"The Hub fails \(500 Internal Server Error"),
    "500 at an upload": (Fault("PUT", "/storage/", status=500), OURS, r"The Hub fails \(500 Internal Server Error"),
    "upload cut": (Fault("PUT", "/storage/", cut="request"), OURS, "The connection to the Hub broke"),
    "download cut": (Fault("GET", "/resolve/.*config", cut="response"), OURS, "The connection to the Hub broke"),
    "bytes changed on the way": (
        Fault("PUT", "/storage/", change=lambda body: body[:-1] + b"?"),
        OURS,
        r"The Hub refuses what was sent to user/model \(400 Bad Request: The content does not match the SHA-256",
    ),
    "nonsense": (Fault("POST", "/commit/", change=lambda body: b"<html>"), OURS, "The Hub and its client disagree"),
}


@pytest.mark.parametrize("name", STOPPING)
def test_one_sentence_and_a_rerun(name, hub, folder):
    fault, code, sentence = STOPPING[name]
    fault.times = FOREVER
    hub.faults.append(fault)
    refused(publish(folder), code, sentence, f"continue with `nm-export publish {folder} --repo-id {REPO}`.")
    assert fault.times < FOREVER
    hub.faults.clear()
    sent = set(hub.objects)
    hub.requests.clear()
    succeeds(hub, folder)
    assert not [path for method, path in hub.requests if method == "PUT" and path.rsplit("/", 1)[-1] in sent]


def refused(result, code, *sentences):
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == code, result.output
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for sentence in sentences:
        assert sentence in lines[0] or re.search(sentence, lines[0]), lines[0]


@pytest.mark.parametrize("path", ["model.safetensors", "onnx/model.onnx.data", "config.json"])
def test_the_hub_lists_another_hash(path, hub, folder):
    blob = Blob((folder / path).read_bytes(), lfs=path != "config.json")
    known = (blob.sha256 if blob.lfs else blob.oid).encode()
    hub.faults.append(Fault("GET", "/tree/", times=FOREVER, change=lambda body: body.replace(known, known[::-1])))
    is_not_what_was_sent(path, hub, folder)


@pytest.mark.parametrize("path", ["model.safetensors", "onnx/model.onnx.data"])
def test_loaders_would_get_another_hash(path, hub, folder):
    hub.announced[path] = "0" * 64
    is_not_what_was_sent(path, hub, folder)


def test_a_loader_would_get_other_bytes(hub, folder):
    hub.faults.append(Fault("GET", "/resolve/.*config", times=FOREVER, change=lambda body: body.replace(b"{", b"[")))
    is_not_what_was_sent("config.json", hub, folder)


def is_not_what_was_sent(path, hub, folder):
    sentence = f"{path} differs from what was sent in user/model at commit"
    refused(publish(folder), OURS, sentence, "do not use that commit; publish the folder again")
    hub.faults.clear()
    hub.announced.clear()
    succeeds(hub, folder)


def test_silence_ends(hub, folder, monkeypatch):
    monkeypatch.setattr(hub_requests, "TIMEOUT_SECONDS", 1.0)
    hub.faults.append(Fault("POST", "/commit/", stall=3.0, times=FOREVER))
    refused(publish(folder), OURS, r"The connection to the Hub broke \(.*timed out")


def test_somebody_else_commits_meanwhile(hub, folder):
    hub.create(REPO)
    repository = hub.repositories[REPO]
    theirs = {"LICENSE": Blob(b"MIT", lfs=False)}
    hub.faults.append(Fault("POST", "/commit/", act=lambda: repository.commit("main", theirs)))
    assert publish(folder).exit_code == 0
    assert repository.moves == ["main"] * 3
    assert repository.files()["LICENSE"] == b"MIT"


def test_the_client_of_a_program_is_kept():
    before = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY
    with hub_requests.bounded_waits():
        assert huggingface_hub.utils.get_session().timeout.read == hub_requests.TIMEOUT_SECONDS
    assert huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY is before
    own = lambda: before()  # noqa: E731
    huggingface_hub.set_client_factory(own)
    try:
        with hub_requests.bounded_waits():
            assert huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY is own
    finally:
        huggingface_hub.set_client_factory(before)
