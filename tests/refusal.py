"""Bad input through the command line, within this process: refused in one sentence, soon and without much memory."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nm_export.cli import app

USER = 2
_SECONDS = 30
"""Against endless loops; a refusal takes less than one, but machines are slow at times."""
_BYTES = 1 << 30


@contextmanager
def bounded() -> Iterator[None]:
    """Within the block, hours and gigabytes are failures."""
    import resource

    def too_long(*_: object) -> None:
        pytest.fail(f"not refused within {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _BYTES, limits[1]))
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def assert_refused(words: list[str], message: str) -> None:
    """Run `nm-export` and assert that it ends with code 2 and one sentence, after the stages that went well."""
    with bounded():
        result = CliRunner().invoke(app, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == USER, result.stderr
    lines = result.stderr.strip().splitlines()
    sentences = [line for line in lines if not re.match(r"(• .* …|  \d+\.\d s|  .*, \d+:\d\d(, .* left)?)$", line)]
    assert len(sentences) == 1, result.stderr
    assert sentences[0].startswith("error: ")
    assert "memory" not in sentences[0], sentences[0]
    assert "this is a bug" not in sentences[0], sentences[0]
    assert re.search(message, sentences[0]), sentences[0]
