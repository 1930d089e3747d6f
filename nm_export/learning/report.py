"""What learning did."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class HeldOut(NamedTuple):
    """Loss on held-out text before and after a training, and whether what was trained was kept."""

    before: float
    after: float
    kept: bool


@dataclass(frozen=True)
class LearningReport:
    """Losses of a training, and what held-out text says.

    Attributes:
        mode: blockwise or end_to_end.
        losses: of every step, in order; blockwise, of all blocks one after the other.
        held_out: for `model`, or each block by its name.
    """

    mode: str
    losses: list[float]
    held_out: dict[str, HeldOut] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "mode": self.mode,
            "losses": self.losses,
            "held_out": {
                name: {"before": before, "after": after, "kept": kept}
                for name, (before, after, kept) in self.held_out.items()
            },
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LearningReport":
        """Make it again from what `to_dict` returned."""
        held_out = {
            name: HeldOut(part["before"], part["after"], part["kept"]) for name, part in values["held_out"].items()
        }
        return cls(values["mode"], values["losses"], held_out)
