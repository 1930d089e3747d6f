"""Several processes that calibrate one model together: each runs a part of the batches, all get the same sums."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nm_export.calibration.statistics import InputStatistics


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

    def share(self, sequences: Tensor, batch_size: int) -> tuple[Tensor, ...]:
        """Return this process's batches: every `count`-th one, whole, so that each is computed as it would be alone."""
        return sequences.split(batch_size)[self.rank :: self.count]

    def combine(self, statistics: Iterable[InputStatistics]) -> None:
        """Make the statistics, in place, those of all processes, in one exchange.

        Partial sums are added in the order of ranks: every process gets the same bits, and those of a single process up
        to the rounding of float64 sums. Maxima and the number of tokens are equal.
        """
        statistics = list(statistics)
        states = [each.state() for each in statistics]
        rows = self.gather(torch.cat(states))
        for own, parts in zip(statistics, rows.split([len(state) for state in states], dim=1), strict=True):
            own.tensors = own.unpack(parts[0].clone())
            for part in parts[1:]:
                own.add(own.unpack(part))
