"""A measured mean and how far it may be off."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error; None where nothing is known about the error."""

    value: float
    stderr: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values for JSON, which knows no NaN and no infinity: they become None."""
        error = self.stderr
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "stderr": error if error is not None and math.isfinite(error) else None,
        }

    def format(self, digits: int, *, scale: float = 1.0, unit: str = "") -> str:
        """Return for example `33.49 ± 1.20`, or `51.3 ± 2.1 %` with a unit."""
        text = f"{self.value * scale:.{digits}f}"
        if self.stderr is not None:
            text += f" ± {self.stderr * scale:.{digits}f}"
        return text + unit


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of independent measurements and its standard error: s / sqrt(n), s with n - 1 in the divisor.

    The error of a single measurement is None. Raises ValueError when there is none at all.
    """
    if not values:
        raise ValueError("the mean of no values")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Estimate(mean, math.sqrt(variance / len(values)))


def exponential(estimate: Estimate) -> Estimate:
    """Return exp of an estimate; its error by the delta method."""
    value = math.exp(estimate.value) if estimate.value < 700 else math.inf  # the largest double is e^709
    return Estimate(value, None if estimate.stderr is None else value * estimate.stderr)
