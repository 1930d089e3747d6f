"""How fast this machine multiplies and writes, measured in a second or two."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

_SECONDS = 0.4
_TOKENS, _K, _O = 512, 1024, 2048
_FILE = 32_000_000


@dataclass(frozen=True)
class Rates:
    """Speeds of this machine.

    Attributes:
        macs: multiply-accumulates a second of a dense product with 512 tokens, in the dtype that was asked for.
        float_macs: the same in float32.
        read: bytes a second of reading memory that is in no cache.
        write: bytes a second of writing a file until it is on the disk; None where nothing can be written.
    """

    macs: float
    float_macs: float
    read: float
    write: float | None


def measure_rates(dtype: torch.dtype, folder: Path) -> Rates:
    """Measure for a second or two; a file in `folder`, or in the nearest one above that exists, is removed again."""
    while not folder.is_dir():
        folder = folder.parent
    float_macs = _macs(torch.float32)
    return Rates(float_macs if dtype == torch.float32 else _macs(dtype), float_macs, _read(), _write(folder))


def _macs(dtype: torch.dtype) -> float:
    x, weight = torch.ones(_TOKENS, _K, dtype=dtype), torch.ones(_O, _K, dtype=dtype)
    return _TOKENS * _K * _O / _time(lambda: F.linear(x, weight))


def _read() -> float:
    block = torch.ones(64_000_000 // 4)
    return block.nbytes / _time(block.sum)


def _write(folder: Path) -> float | None:
    content = os.urandom(_FILE)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            start = time.perf_counter()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            return _FILE / (time.perf_counter() - start)
    except OSError:
        return None


def _time(work: Callable[[], object]) -> float:
    """Median seconds of a call, the first apart."""
    with torch.inference_mode():
        work()
        times: list[float] = []
        begin = time.perf_counter()
        while not times or time.perf_counter() - begin < _SECONDS:
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return statistics.median(times)
