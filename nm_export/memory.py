"""How much memory there is, and how much a model needs."""

from pathlib import Path
from typing import Any

import psutil

_SHARE = 0.5  # of the available memory that weights may take, so that they stay there between two passes
_CGROUP = Path("/sys/fs/cgroup")


def is_larger_than_memory(model: Any) -> bool:
    """Whether a model's weights, mapped files included, would not stay in half of the memory that is available."""
    return not fits(weight_bytes(model))


def fits(size: int) -> bool:
    """Whether so many bytes are at most half of the memory that is available."""
    return size <= _SHARE * available_bytes()


def weight_bytes(model: Any) -> int:
    """Size of a model's weights in bytes; shared ones count once, and offloaded ones as well."""
    return sum(parameter.nbytes for parameter in model.parameters())


def available_bytes() -> int:
    """Memory that this process could still use: of the machine, or of its container (cgroup v2) if that has less."""
    available = psutil.virtual_memory().available
    try:
        limit, used = (
            (_CGROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current")
        )
    except OSError:  # no container, or no Linux
        return available
    if limit == "max":
        return available
    # cached files count as used there, and give way
    cached = next(
        int(line.split()[1])
        for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        if line.startswith("file ")
    )
    return min(available, int(limit) - int(used) + cached)
