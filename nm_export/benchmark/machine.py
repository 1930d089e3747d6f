"""The machine: what it is, how fast it reads memory and how fast it multiplies."""

import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nm_export.benchmark.timing import Clock
from nm_export.versions import installed_versions

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_UNKNOWN_CACHE = 64 * 2**20
_PACKAGES = ("nm_export", "onnxruntime", "onnxruntime-genai", "torch", "transformers")


@dataclass(frozen=True)
class Machine:
    """Where something was measured.

    Attributes:
        processor: its name.
        cores: those that this process may use.
        threads: those that the operators ran on.
        cache_bytes: size of the last-level cache.
        system: kernel and architecture.
        versions: of the packages that took part.
        bandwidth: bytes read in a second on `threads` threads: the fastest of torch's sum, dot and mv over a buffer of
            twice the last-level cache.
        peak: float32 operations in a second (a multiplication and an addition are two): the fastest product of
            two square matrices of 256, 512 or 1,024 rows in torch, which stay in the caches.
    """

    processor: str
    cores: int
    threads: int
    cache_bytes: int
    system: str
    versions: dict[str, str]
    bandwidth: float
    peak: float

    def at_best(self, other: "Machine") -> "Machine":
        """The same machine with the higher of two measurements of each limit."""
        return replace(self, bandwidth=max(self.bandwidth, other.bandwidth), peak=max(self.peak, other.peak))

    def to_markdown(self) -> str:
        """Return one sentence without its full stop."""
        versions = ", ".join(f"{package} {version}" for package, version in self.versions.items())
        return (
            f"{self.processor}, {self.cores} cores, {self.threads} thread{'' if self.threads == 1 else 's'}, "
            f"{self.cache_bytes / 2**20:.0f} MiB of last-level cache, {self.bandwidth / 1e9:.1f} GB/s read, "
            f"{self.peak / 1e9:.0f} GFLOP/s multiplied; {self.system}; {versions}"
        )


def measure_machine(threads: int, clock: Clock = Clock.wall, memory: int | None = None) -> Machine:
    """Describe this machine and measure the two limits of its speed.

    Args:
        threads: that will work; torch has its own number back afterwards.
        clock: what to measure.
        memory: bytes to read for the bandwidth; None is twice the last-level cache.
    """
    cache = last_level_cache()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        bandwidth = _bandwidth(memory or 2 * cache, clock)
        peak = max(_multiplication_rate(size, clock) for size in (256, 512, 1024))
    finally:
        torch.set_num_threads(before)
    return Machine(
        processor=processor_name(),
        cores=available_cores(),
        threads=threads,
        cache_bytes=cache,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions=installed_versions(_PACKAGES),
        bandwidth=bandwidth,
        peak=peak,
    )


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def last_level_cache(caches: Path = _CACHES) -> int:
    """Bytes of the last-level cache, from Linux's sysfs; 64 MiB where it does not tell."""
    found = {}
    for index in caches.glob("index*"):
        size = (index / "size").read_text().strip()
        found[int((index / "level").read_text())] = int(size.rstrip("KMG")) * _UNITS.get(size[-1], 1)
    return found[max(found)] if found else _UNKNOWN_CACHE


def processor_name() -> str:
    """What the operating system calls the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _bandwidth(size: int, clock: Clock) -> float:
    rows = torch.ones(max(1, size // 4 // 4096), 4096)
    flat, vector = rows.view(-1), torch.ones(4096)
    reads: tuple[Any, ...] = (flat.sum, lambda: torch.dot(flat, flat), lambda: torch.mv(rows, vector))
    return rows.numel() * 4 / min(clock.seconds(read) for _ in range(5) for read in reads)


def _multiplication_rate(size: int, clock: Clock) -> float:
    a, b = torch.ones(size, size), torch.ones(size, size)
    products = max(1, 2**28 // size**3)  # a run long enough for either clock

    def multiply() -> None:
        for _ in range(products):
            torch.mm(a, b)

    multiply()
    return products * 2 * size**3 / min(clock.seconds(multiply) for _ in range(7))
