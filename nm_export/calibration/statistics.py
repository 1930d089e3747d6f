"""Running sums over the inputs of linears, gathered by forward hooks that remove themselves."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nm_export.errors import UserError

Statistic = Literal["mean", "median", "square", "maximum"]

_ELEMENTS = 1 << 16  # looked at together: their float64 copy stays in the cache, and memory far below one activation


class InputStatistics:
    """Sums over the tokens seen so far at one input of `K` channels. Its size does not depend on their number.

    Args:
        channels: K.
        wanted: what is gathered besides the sum of each channel, which also tells whether every activation is finite.
            Part of the object's kind: only objects of one kind can be merged.

    Attributes:
        tensors: float64, on the CPU: `tokens` `[1]`, their number; `sum` `[K]` of each channel; and where wanted
            `median_sum` `[1]` of the tokens' lower medians, `square_sum` `[K]`, `maximum` `[K]` of the magnitudes.
    """

    def __init__(self, channels: int, wanted: Iterable[Statistic] = ()) -> None:
        self.channels = channels
        self.wanted = frozenset(wanted)
        shapes = {"median": ("median_sum", 1), "square": ("square_sum", channels), "maximum": ("maximum", channels)}
        sizes = dict([("tokens", 1), ("sum", channels), *(shapes[word] for word in shapes if word in self.wanted)])
        self.tensors = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}

    def update(self, x: Tensor) -> None:
        """Add the tokens of `x` `[..., K]`."""
        tokens = x.reshape(-1, self.channels)
        self.tensors["tokens"] += len(tokens)
        seen = {name: tensor.to(x.device) for name, tensor in self.tensors.items()}
        for chunk in tokens.split(max(1, _ELEMENTS // self.channels)):
            if "median_sum" in seen:
                seen["median_sum"] += _lower_medians(chunk).sum(dtype=torch.float64)
            if "maximum" in seen:  # two reductions take a third of the time of one over the magnitudes
                largest = torch.maximum(chunk.amax(dim=0), chunk.amin(dim=0).neg_())
                torch.maximum(seen["maximum"], largest.double(), out=seen["maximum"])
            exact = chunk.double()
            ones = exact.new_ones(len(exact))
            seen["sum"] += ones @ exact
            if "square_sum" in seen:
                seen["square_sum"] += ones @ exact.square_()
        for name in self.tensors.keys() - {"tokens"}:
            self.tensors[name] = seen[name].cpu()

    def merge(self, other: "InputStatistics") -> None:
        """Add the tokens that another object of the same kind has seen."""
        for name, tensor in other.tensors.items():
            combine = torch.maximum if name == "maximum" else torch.add
            self.tensors[name] = combine(self.tensors[name], tensor)

    def state(self) -> Tensor:
        """Everything gathered, float64 `[L]`; L follows from the object's kind."""
        return torch.cat(list(self.tensors.values()))

    def load(self, state: Tensor) -> None:
        """Take over the `state` of another object of this kind."""
        parts = state.split([len(tensor) for tensor in self.tensors.values()])
        self.tensors = {name: part.clone() for name, part in zip(self.tensors, parts, strict=True)}

    @property
    def finite(self) -> bool:
        """Whether every activation was finite."""
        return bool(self.tensors["sum"].isfinite().all())

    @property
    def channel_mean(self) -> Tensor:
        """Mean of each channel, float32 `[K]`."""
        return (self.tensors["sum"] / self.tensors["tokens"]).float()

    @property
    def mean_median(self) -> Tensor:
        """Mean of the tokens' medians, float32 `[1]`."""
        return (self.tensors["median_sum"] / self.tensors["tokens"]).float()

    @property
    def channel_norm(self) -> Tensor:
        """Euclidean norm of each channel over the tokens, float64 `[K]`."""
        return self.tensors["square_sum"].sqrt()

    @property
    def channel_maximum(self) -> Tensor:
        """Largest magnitude of each channel, float64 `[K]`."""
        return self.tensors["maximum"]


def not_finite(name: str) -> UserError:
    """The error for a linear whose input holds NaN or infinite values."""
    return UserError(
        f"The input of {name} holds NaN or infinite values in calibration; check the model's weights, or load it with "
        "model.dtype: float32 if it overflows in float16."
    )


@contextmanager
def collecting(statistics: Mapping[str, InputStatistics], modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within the block, update each module's statistics at every forward pass.

    Raises:
        UserError: an activation is NaN or infinite; names the module.
    """

    def hook_for(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            statistics[name].update(args[0])
            if not statistics[name].finite:
                raise not_finite(name)

        return hook

    hooks = [modules[name].register_forward_pre_hook(hook_for(name)) for name in statistics]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _lower_medians(tokens: Tensor) -> Tensor:
    """Median of each row of `[T, K]`, the lower one of an even count; meaningless where a row holds a NaN."""
    if tokens.device.type != "cpu":
        return tokens.float().median(dim=-1).values
    # NumPy's selection is vectorised: 2 ns an element, where torch takes 7 to 14
    middle = (tokens.shape[-1] - 1) // 2
    return torch.from_numpy(np.partition(tokens.float().numpy(), middle, axis=-1)[:, middle])
