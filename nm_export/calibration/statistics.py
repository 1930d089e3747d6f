"""Running sums over the inputs of linears, gathered by forward hooks that remove themselves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nm_export.errors import UserError


@dataclass
class InputStatistics:
    """Sums over the tokens seen so far at one input of `K` channels. Its size does not depend on their number.

    Attributes:
        tokens: number of tokens.
        channel_sum: float64 `[K]`, sum of each channel.
        median_sum: float64 `[]`, sum of the tokens' lower medians; stays 0 unless medians are asked for.
    """

    channels: int
    with_medians: bool = False
    tokens: int = 0

    def __post_init__(self) -> None:
        self.channel_sum = torch.zeros(self.channels, dtype=torch.float64)
        self.median_sum = torch.zeros((), dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add the tokens of `x` `[..., K]`."""
        tokens = x.reshape(-1, self.channels)
        self.tokens += tokens.shape[0]
        self.channel_sum += tokens.sum(dim=0, dtype=torch.float64).cpu()
        if self.with_medians:
            self.median_sum += tokens.float().median(dim=-1).values.sum(dtype=torch.float64).cpu()

    @property
    def channel_mean(self) -> Tensor:
        """Mean of each channel, float32 `[K]`."""
        return (self.channel_sum / self.tokens).float()

    @property
    def mean_median(self) -> Tensor:
        """Mean of the tokens' medians, float32 `[1]`."""
        return (self.median_sum / self.tokens).float().reshape(1)


@contextmanager
def collecting(statistics: Mapping[str, InputStatistics], modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within the block, update each module's statistics at every forward pass.

    Raises:
        UserError: an activation is NaN or infinite; names the module.
    """

    def hook_for(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            statistics[name].update(args[0])
            if not statistics[name].channel_sum.isfinite().all():
                raise UserError(
                    f"The input of {name} holds NaN or infinite values in calibration; check the model's weights, or "
                    "load it with model.dtype: float32 if it overflows in float16."
                )

        return hook

    hooks = [modules[name].register_forward_pre_hook(hook_for(name)) for name in statistics]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
