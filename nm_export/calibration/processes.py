"""Several processes that calibrate one model together: each runs a part of the batches, all get the sums of one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from nm_export.calibration.statistics import InputStatistics, NotFiniteError

T = TypeVar("T")


def _alone(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0)


@dataclass(frozen=True)
class Processes:
    """Where this process stands among those that calibrate together; the default is a process on its own.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
        gather: from a float64 CPU tensor `[L]`, the same L everywhere, to those of all processes in the order of their
            ranks, `[count, L]` on the CPU.
    """

    rank: int = 0
    count: int = 1
    gather: Callable[[Tensor], Tensor] = _alone

    def rounds(self, batches: Sequence[T]) -> list[T | None]:
        """Return this process's batch of each round, in which every process has one, or None in the last; all have as
        many rounds. Batches are dealt out whole, so that each is computed as it would be alone."""
        own: list[T | None] = list(batches[self.rank :: self.count])
        return own + [None] * (-(-len(batches) // self.count) - len(own))

    def add(self, totals: Mapping[str, InputStatistics], round: Mapping[str, InputStatistics]) -> None:
        """Add to `totals`, alike in every process, what all have measured in a `round`, and empty the round's.

        Batches are added one after the other in the order of the text, whatever their number in a round: the sums are
        bit for bit those of a single process.

        Raises:
            NotFiniteError: in every process, when one has seen an activation that is NaN or infinite; names the first
                module.
        """
        rows = self.gather(torch.cat([round[name].state() for name in totals]))
        for name, parts in zip(totals, rows.split([total.size for total in totals.values()], dim=1), strict=True):
            for part in parts:  # of a process without a batch, zeros
                totals[name].add(totals[name].unpack(part))
            round[name].clear()
        for name, total in totals.items():
            if not total.finite:
                raise NotFiniteError(name)
