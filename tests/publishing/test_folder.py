"""Folders appear whole or not at all."""

import os
import subprocess

import pytest

from nm_export.errors import UserError
from nm_export.publishing.folder import check_target, replacing

OURS = "modeling_nm_sparse.py"


def write_export(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OURS).write_text(content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def gone():
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "parent" / "out"
    with replacing(target, overwrite=False) as folder:
        write_export(folder, "new")
        assert not target.exists()
        assert folder.parent == target.parent  # one file system, so that renaming is one step
    assert (target / OURS).read_text() == "new"
    assert names(target.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_was_there_stays_when_the_block_fails(error, tmp_path):
    write_export(tmp_path / "out", "old")

    def fail():
        with replacing(tmp_path / "out", overwrite=True) as folder:
            write_export(folder, "new")
            raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "out" / OURS).read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_replaces_everything(tmp_path):
    write_export(tmp_path / "out", "old")
    (tmp_path / "out" / "onnx").mkdir()
    with replacing(tmp_path / "out", overwrite=True) as folder:
        write_export(folder, "new")
    assert names(tmp_path / "out") == [OURS]
    assert (tmp_path / "out" / OURS).read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_not_in_the_way(tmp_path):
    (tmp_path / "out").mkdir()
    with replacing(tmp_path / "out", overwrite=False) as folder:
        write_export(folder, "new")
    assert (tmp_path / "out" / OURS).read_text() == "new"


def test_leftovers_of_killed_runs_are_removed_and_of_running_ones_not(tmp_path, gone):
    for name in (f".out.partial-{gone}-abc123_x", f".out.partial-{os.getpid()}-abc", f".output.partial-{gone}-abc"):
        write_export(tmp_path / name, "partial")
    with replacing(tmp_path / "out", overwrite=False) as folder:
        write_export(folder, "new")
    assert names(tmp_path) == [f".out.partial-{os.getpid()}-abc", f".output.partial-{gone}-abc", "out"]


@pytest.mark.parametrize("new_is_there", [False, True])
def test_killed_between_the_two_renames(new_is_there, tmp_path, gone):
    write_export(tmp_path / f".out.partial-{gone}-abc-old", "old")
    write_export(tmp_path / f".out.partial-{gone}-abc", "never verified to the end")
    if new_is_there:
        write_export(tmp_path / "out", "new")
    with pytest.raises(ValueError, match="stop"), replacing(tmp_path / "out", overwrite=True):
        raise ValueError("stop")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / OURS).read_text() == ("new" if new_is_there else "old")


def test_wildcards_in_a_name_are_letters(tmp_path, gone):
    write_export(tmp_path / f".a.partial-{gone}-abc", "somebody's")
    with replacing(tmp_path / "[ab]*", overwrite=False) as folder:
        write_export(folder, "new")
    assert names(tmp_path) == [f".a.partial-{gone}-abc", "[ab]*"]


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("")
    write_export(tmp_path / "export", "old")
    for name, overwrite, message in (
        ("file", True, "is a file"),
        ("thesis", True, "did not write"),
        ("export", False, "pass --overwrite"),
    ):
        with pytest.raises(UserError, match=message):
            check_target(tmp_path / name, overwrite=overwrite)
    check_target(tmp_path / "export", overwrite=True)
    check_target(tmp_path / "new", overwrite=False)
    with pytest.raises(UserError, match="cannot be written"), replacing(tmp_path / "file" / "out", overwrite=False):
        pass
