"""What learning did."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LearningReport:
    """Losses of a training, and what held-out text says.

    Attributes:
        mode: blockwise or end_to_end.
        losses: of every step, in order; blockwise, of all blocks one after the other.
        held_out: for the model or each block, the loss before, the loss after, and whether the training was kept.
    """

    mode: str
    losses: list[float]
    held_out: dict[str, tuple[float, float, bool]] = field(default_factory=dict)

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
        held_out = {name: (part["before"], part["after"], part["kept"]) for name, part in values["held_out"].items()}
        return cls(values["mode"], values["losses"], held_out)
