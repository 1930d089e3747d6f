"""Timing of rivals that take turns in one process."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

_WARM_RUNS, _WARM_SECONDS = 25, 1.0


class Clock(StrEnum):
    """What time is measured.

    Processor time is that of all threads of the process together: it stands for elapsed time where one thread works,
    and then other jobs of the machine matter less.
    """

    wall = "wall"
    cpu = "cpu"

    def seconds(self, call: Callable[[], object]) -> float:
        """The time of one call."""
        now = time.perf_counter if self is Clock.wall else time.process_time
        start = now()
        call()
        return now() - start


@dataclass(frozen=True)
class Ratio:
    """A median over pairs of runs that followed each other, with its quartiles."""

    value: float
    low: float
    high: float


def take_turns(
    calls: Mapping[str, Callable[[], object]], repeats: int, clock: Clock, budget: float = 20.0
) -> dict[str, list[float]]:
    """Run every call until it is warm, then all in turn, `repeats` times.

    Warm is what has buffers and caches, and has timed its candidates (kernels/product/auto_tuner.h): after 25
    runs, or the first one that ends when a second is over.

    Args:
        calls: the rivals, by name.
        repeats: rounds; at most, where `budget` ends first.
        clock: what to measure.
        budget: seconds after which no round begins, but the first three.

    Returns:
        Seconds of every round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        end = time.perf_counter() + _WARM_SECONDS
        for _ in range(_WARM_RUNS):
            call()
            if time.perf_counter() > end:
                break
    end = time.perf_counter() + budget
    for turn in range(repeats):
        if turn >= 3 and time.perf_counter() > end:
            break
        for name, call in calls.items():
            seconds[name].append(clock.seconds(call))
    return seconds


def ratio(over: list[float], under: list[float]) -> Ratio:
    """How many times longer `over` took, round by round."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    if len(ratios) < 2:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(middle, low, high)
