"""Workspaces: one run at a time, what is left of a run, an earlier model between two renames."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nm_export.errors import UserError
from nm_export.publishing.lock import alone
from nm_export.publishing.workspace import Workspace, folder_for, working_on

HOLD = """
import sys, time
from pathlib import Path
from nm_export.publishing.lock import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def write(workspace, stage, name, content="new", read="a"):
    path = workspace.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    workspace.journal.record(stage, {"model": read}, [path], None, 1.0, 0)
    return path


def run_that_fails(target, work):
    with working_on(target) as workspace:
        work(workspace)
        raise RuntimeError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    target = tmp_path / "out"
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"another run \(process {process.pid} on .*\) is writing .*out; wait"):
        working_on(target).__enter__()
    assert names(tmp_path) == [".out.lock"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    with working_on(target) as workspace:  # a lock that nobody holds is no lock
        assert workspace.folder.is_dir()
    assert names(tmp_path) == []


def test_file_systems_without_locks(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone(tmp_path / "out"):
        assert "without locks: see to it that no other run writes out" in caplog.text
    assert names(tmp_path) == []


def test_what_is_finished_stays_and_the_rest_goes(tmp_path):
    def work(workspace):
        write(workspace, "calibrate", "calibrated.safetensors")
        (workspace.model / "onnx").mkdir(parents=True)
        (workspace.model / "onnx" / "half").write_text("of it")

    with pytest.raises(RuntimeError):
        run_that_fails(tmp_path / "out", work)
    assert names(tmp_path) == [".out.work"]
    assert names(tmp_path / ".out.work") == ["calibrated.safetensors", "journal.json"]
    with working_on(tmp_path / "out") as workspace:
        assert workspace.journal.why_not("calibrate", {"model": "a"}) is None
        assert workspace.journal.why_not("calibrate", {"model": "b"}) == "model changed"
        assert "what was finished (calibrate) is kept in" in workspace.describe()


def test_nothing_finished_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        run_that_fails(tmp_path / "out", lambda workspace: (workspace.folder / "half").write_text("of it"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("damage", [b"", b"NEW", b"newer", None])
def test_files_that_are_not_as_they_were_written(damage, tmp_path):
    with working_on(tmp_path / "out") as workspace:
        path = write(workspace, "write", "model/weights")
        other = write(workspace, "calibrate", "calibrated.safetensors")
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        assert workspace.journal.why_not("write", {"model": "a"}) == "weights is not as it was written"
        workspace.journal.forget("write")
        assert not path.exists()
        assert other.exists()


@pytest.mark.parametrize("journal", [b"", b"{", b"[]", b'{"format": 0, "stages": {}}', b'{"format": 1, "stages": [1]}'])
def test_a_damaged_journal_costs_time_only(journal, tmp_path):
    workspace = Workspace(tmp_path / "out")
    write(workspace, "calibrate", "calibrated.safetensors")
    (workspace.folder / "journal.json").write_bytes(journal)
    again = Workspace(tmp_path / "out")
    assert again.journal.entries == {}
    assert not (again.folder / "calibrated.safetensors").exists()


def test_killed_between_the_two_renames(tmp_path):
    target = tmp_path / "out"
    workspace = Workspace(target)
    write(workspace, "write", "model/weights")
    (workspace.folder / "retired").mkdir()
    (workspace.folder / "retired" / "weights").write_text("old")
    with working_on(target) as again:
        assert (target / "weights").read_text() == "old"
        again.finish(["write"])
    assert (target / "weights").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_killed_after_the_second_rename(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "weights").write_text("new")
    (folder_for(target) / "retired").mkdir(parents=True)
    with working_on(target):
        pass
    assert (target / "weights").read_text() == "new"
    assert names(tmp_path) == ["out"]
