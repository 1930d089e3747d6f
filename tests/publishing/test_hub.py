"""Publishing: what is asked of the Hub, and what the user reads when it refuses."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from nm_export.errors import NMExportError, UserError
from nm_export.publishing import hub


class RecordedHub:
    """Stands in for HfApi: records calls, fails where a test wants it."""

    def __init__(self, **failures):
        self.calls, self.failures = [], failures

    def _answer(self, name, options, value):
        self.calls.append((name, options))
        if name in self.failures:
            raise self.failures[name]
        return value

    def whoami(self):
        return self._answer("whoami", {}, {"name": "somebody"})

    def create_repo(self, repo_id, **options):
        return self._answer("create_repo", {"repo_id": repo_id, **options}, None)

    def upload_folder(self, **options):
        url = f"https://huggingface.co/{options['repo_id']}/commit/abc"
        return self._answer("upload_folder", options, SimpleNamespace(commit_url=url))


@pytest.fixture
def recorded(monkeypatch):
    def use(**failures):
        api = RecordedHub(**failures)
        monkeypatch.setattr(hub, "HfApi", lambda: api)
        return api

    return use


class TransportError(Exception):
    """Like the errors of an HTTP library: no OSError."""


def test_names(recorded):
    recorded()
    assert hub.resolve_repo_id(None, "Mistral-8of16") == "somebody/Mistral-8of16"
    assert hub.resolve_repo_id("mine", "Mistral-8of16") == "somebody/mine"
    assert hub.resolve_repo_id("team/mine", "Mistral-8of16") == "team/mine"


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (LocalTokenNotFoundError("none"), "needs a Hugging Face token: run `hf auth login`"),
        (
            TransportError("Name or service not known"),
            r"cannot reach the Hugging Face Hub \(Name or service not known\)",
        ),
        (TimeoutError(), r"cannot reach the Hugging Face Hub \(TimeoutError\)"),
    ],
)
def test_nobody_is_logged_in(failure, message, recorded):
    recorded(whoami=failure)
    with pytest.raises(UserError, match=message):
        hub.resolve_repo_id("team/mine", "default")


def test_one_commit(recorded, tmp_path):
    api = recorded()
    url = hub.push(tmp_path, "team/mine", private=True, commit_message="Publish")
    assert url == "https://huggingface.co/team/mine/commit/abc"
    assert api.calls == [
        ("create_repo", {"repo_id": "team/mine", "private": True, "exist_ok": True}),
        ("upload_folder", {"repo_id": "team/mine", "folder_path": tmp_path, "commit_message": "Publish"}),
    ]


@pytest.mark.parametrize("step", ["create_repo", "upload_folder"])
def test_an_upload_that_breaks(step, recorded, tmp_path):
    recorded(**{step: TransportError("connection reset\nmore lines")})
    with pytest.raises(
        NMExportError, match=rf"upload to team/mine failed \(connection reset\); {tmp_path} is complete"
    ):
        hub.push(tmp_path, "team/mine", private=False, commit_message="Publish")
