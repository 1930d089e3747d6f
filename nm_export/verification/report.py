"""What verification found."""

from dataclasses import asdict, dataclass, field
from typing import Any

from nm_export.evaluation import Divergence


@dataclass(frozen=True)
class ModuleCheck:
    """One backend, every pruned linear, fed the reference's own inputs.

    Attributes:
        modules: linears checked.
        kept_channels_equal: whether all kept exactly the reference's channels.
        largest_error: largest output difference of any linear, relative to that linear's largest output.
    """

    modules: int
    kept_channels_equal: bool
    largest_error: float


@dataclass
class VerificationReport:
    """Results by backend: `reloaded`, `onnx_kernel`, `onnx_function`.

    Attributes:
        modules: per-module checks.
        reloaded_logits_equal: whether the reloaded model's logits are bit-equal to the calibrated model's.
        floor: the calibrated model against itself, rounded differently; see `rounding_floor`.
        end_to_end: each ONNX Runtime backend against the calibrated model. One with quantized weights is
            compared with that model holding these weights, and so is the floor.
        against_dense: of a quantized graph, the dense float model against the dense graph of that format, the sparse
            float model and the sparse graph; reported, not judged.
        greedy_agreement: length of the common prefix of greedily generated tokens, of how many; reported, not judged.
    """

    modules: dict[str, ModuleCheck] = field(default_factory=dict)
    reloaded_logits_equal: bool = False
    floor: Divergence | None = None
    end_to_end: dict[str, Divergence] = field(default_factory=dict)
    against_dense: dict[str, Divergence] = field(default_factory=dict)
    greedy_agreement: dict[str, tuple[int, int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VerificationReport":
        """Make it again from what `to_dict` returned, or JSON made of it."""
        return cls(
            modules={backend: ModuleCheck(**check) for backend, check in values["modules"].items()},
            reloaded_logits_equal=values["reloaded_logits_equal"],
            floor=Divergence(**values["floor"]) if values["floor"] else None,
            end_to_end={backend: Divergence(**result) for backend, result in values["end_to_end"].items()},
            against_dense={name: Divergence(**result) for name, result in values["against_dense"].items()},
            greedy_agreement={backend: (same, of) for backend, (same, of) in values["greedy_agreement"].items()},
        )
