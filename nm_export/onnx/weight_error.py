"""How far quantized weights are from the float ones, module by module."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nm_export.onnx.quantize import WeightFormat, squared_norm


@dataclass(frozen=True)
class WeightError:
    """Relative Frobenius errors `|quantized - W| / |W|` of one module.

    Attributes:
        error: of the weight that the graph holds.
        matmul_nbits: of `MatMulNBits` with the same bits and block size; None where that is what the graph holds.
    """

    error: float
    matmul_nbits: float | None


class WeightErrors:
    """The errors of all modules, gathered product by product: a packed module has several."""

    def __init__(self) -> None:
        self._squares: dict[str, list[float]] = {}
        self._pruned: set[str] = set()

    def add(
        self, module: str, weight: np.ndarray, quantized: np.ndarray, matmul_nbits: np.ndarray | None = None
    ) -> None:
        """Add one product of a module: its float weight, what the graph holds and what `MatMulNBits` would hold.

        All are float32 `[K, O]`; the last is given where it is not what the graph holds.
        """
        sums = self._squares.setdefault(module, [0.0, 0.0, 0.0])
        sums[0] += squared_norm(weight)
        sums[1] += squared_norm(weight, quantized)
        if matmul_nbits is not None:
            sums[2] += squared_norm(weight, matmul_nbits)
            self._pruned.add(module)

    def by_module(self) -> dict[str, WeightError]:
        """The errors by the module's name; of a weight of zeros 0."""
        return {
            name: WeightError(_relative(own, norm), _relative(other, norm) if name in self._pruned else None)
            for name, (norm, own, other) in self._squares.items()
        }


@dataclass(frozen=True)
class QuantizationReport:
    """What quantization did to the weights of an exported graph.

    Attributes:
        format: of the weights.
        modules: errors by the module's name.
    """

    format: WeightFormat
    modules: Mapping[str, WeightError]

    def mean(self) -> WeightError | None:
        """Means over the modules whose inputs are pruned; None if there are none."""
        pruned = [(m.error, m.matmul_nbits) for m in self.modules.values() if m.matmul_nbits is not None]
        if not pruned:
            return None
        own, other = (sum(column) / len(pruned) for column in zip(*pruned, strict=True))
        return WeightError(own, other)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        mean = self.mean()
        return {
            "precision": self.format.name,
            "block_size": self.format.block_size,
            "symmetric": self.format.symmetric,
            "pruned_modules_mean": None if mean is None else {"error": mean.error, "matmul_nbits": mean.matmul_nbits},
            "modules": {
                name: {"error": m.error} | ({} if m.matmul_nbits is None else {"matmul_nbits": m.matmul_nbits})
                for name, m in self.modules.items()
            },
        }


def _relative(squared: float, norm: float) -> float:
    return math.sqrt(squared / norm) if norm else 0.0
