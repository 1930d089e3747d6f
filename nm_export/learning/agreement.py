"""Decisions that all processes must take alike: one that went another way would leave the others waiting."""

from collections.abc import Iterable

import torch
from torch import Tensor

from nm_export.calibration.processes import Processes
from nm_export.learning.checkpoints import Checkpoints, Saved


def of_first(processes: Processes, *numbers: float) -> list[float]:
    """Return the numbers of the first process, in every process."""
    first: list[float] = processes.gather(torch.tensor(numbers, dtype=torch.float64))[0].tolist()
    return first


def copy_of_first(processes: Processes, tensors: Iterable[Tensor]) -> None:
    """Make float32 tensors, in place, those of the first process."""
    for tensor in tensors if processes.count > 1 else ():
        first = processes.gather(tensor.flatten().double().cpu())[0]
        tensor.copy_(first.reshape(tensor.shape))


def load_everywhere(checkpoints: Checkpoints, name: str, processes: Processes) -> Saved | None:
    """Return a checkpoint if every process can read it, and None in all of them otherwise.

    It also keeps the first process from going on, and removing the folder, before the others have read it.
    """
    saved = checkpoints.load(name)
    steps = -1.0 if saved is None else float(len(saved[1]["losses"]))
    everywhere = processes.gather(torch.tensor([steps], dtype=torch.float64))
    return saved if bool((everywhere == steps).all()) else None
