"""Running sums over the inputs of linears, gathered by forward hooks that remove themselves."""

import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nm_export.errors import UserError

Statistic = Literal["tokens", "sum", "median_sum", "square_sum", "maximum"]
"""Over tokens: their number `[1]`; of each channel, the sum `[K]`; the sum of the tokens' lower medians `[1]`; of each
channel, the sum of squares `[K]` and the largest magnitude `[K]`."""

_ALWAYS: tuple[Statistic, ...] = ("tokens", "sum")  # the sum tells whether every activation was finite
_OF_TOKENS: tuple[Statistic, ...] = ("tokens", "median_sum")
_COMPILED = (torch.float32, torch.float16, torch.bfloat16)  # what the compiled operator takes
_DYNAMIC_MEDIAN = 2  # its shift_mode
_ELEMENTS = 1 << 18  # looked at together: their float64 copy (2 MiB) stays in the cache, and below one activation


class NotFiniteError(UserError):
    """The input of a linear holds NaN or infinite values."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The input of {name} holds NaN or infinite values in calibration; check the model's weights, or load it "
            "with model.dtype: float32 if it overflows in float16."
        )


class InputStatistics:
    """What has been seen so far at one input of `K` channels. Its size does not depend on the number of tokens.

    Args:
        channels: K.
        wanted: statistics that are gathered besides `tokens` and `sum`.

    Attributes:
        tensors: the statistics, float64 on the CPU.
    """

    def __init__(self, channels: int, wanted: Iterable[Statistic] = ()) -> None:
        self.channels = channels
        self.tensors: dict[Statistic, Tensor] = {
            word: torch.zeros(1 if word in _OF_TOKENS else channels, dtype=torch.float64)
            for word in dict.fromkeys((*_ALWAYS, *sorted(wanted)))
        }

    def update(self, x: Tensor) -> None:
        """Add the tokens of `x` `[..., K]`."""
        self.add(measure(x, self.tensors))

    def add(self, seen: Mapping[Statistic, Tensor]) -> None:
        """Add statistics of further tokens; `seen` may hold more than is wanted here."""
        # in place: new small tensors between the large ones of every layer would fragment the heap
        for word, tensor in self.tensors.items():
            combine = torch.maximum if word == "maximum" else torch.add
            combine(tensor, seen[word], out=tensor)

    def clear(self) -> None:
        """Forget everything."""
        for tensor in self.tensors.values():
            tensor.zero_()

    @property
    def size(self) -> int:
        """Length of the `state`; it follows from the channels and from what is wanted."""
        return sum(len(tensor) for tensor in self.tensors.values())

    def state(self) -> Tensor:
        """Everything gathered, float64 `[size]`."""
        return torch.cat(list(self.tensors.values()))

    def unpack(self, state: Tensor) -> dict[Statistic, Tensor]:
        """Split the `state` of an object of the same kind into its statistics (views), for `add`."""
        parts = state.split([len(tensor) for tensor in self.tensors.values()])
        return dict(zip(self.tensors, parts, strict=True))

    @property
    def finite(self) -> bool:
        """Whether every activation was finite."""
        return bool(self.tensors["sum"].isfinite().all())

    @property
    def channel_mean(self) -> Tensor:
        """Mean of each channel, float32 `[K]`; 0 without tokens."""
        return (self.tensors["sum"] / self.tensors["tokens"].clamp(min=1)).float()

    @property
    def mean_median(self) -> Tensor:
        """Mean of the tokens' medians, float32 `[1]`; 0 without tokens."""
        return (self.tensors["median_sum"] / self.tensors["tokens"].clamp(min=1)).float()

    @property
    def channel_norm(self) -> Tensor:
        """Euclidean norm of each channel over the tokens, float64 `[K]`."""
        return self.tensors["square_sum"].sqrt()

    @property
    def channel_maximum(self) -> Tensor:
        """Largest magnitude of each channel, float64 `[K]`."""
        return self.tensors["maximum"]


def measure(x: Tensor, wanted: Collection[Statistic]) -> dict[Statistic, Tensor]:
    """Return the wanted statistics of the tokens of `x` `[..., K]`, float64 on the CPU, after one walk over them."""
    tokens = x.reshape(-1, x.shape[-1])
    seen: dict[Statistic, Tensor] = {
        word: torch.zeros(1 if word in _OF_TOKENS else x.shape[-1], dtype=torch.float64, device=x.device)
        for word in wanted
    }
    if "tokens" in seen:
        seen["tokens"] += len(tokens)
    # an expert that no token reaches is called with none
    chunks: Sequence[Tensor] = tokens.split(max(1, _ELEMENTS // x.shape[-1])) if len(tokens) else ()
    summed = len(chunks) > 0 and not seen.keys().isdisjoint(("sum", "square_sum"))
    copies = torch.empty_like(chunks[0], dtype=torch.float64) if summed else None
    for chunk in chunks:
        if "median_sum" in seen:
            seen["median_sum"] += _lower_medians(chunk).sum(dtype=torch.float64)
        if "maximum" in seen:  # two reductions take a third of the time of one over the magnitudes
            largest = torch.maximum(chunk.amax(dim=0), chunk.amin(dim=0).neg_())
            torch.maximum(seen["maximum"], largest.double(), out=seen["maximum"])
        if copies is not None:
            exact = copies[: len(chunk)].copy_(chunk)
            if "sum" in seen:
                seen["sum"] += exact.sum(dim=0)
            if "square_sum" in seen:
                seen["square_sum"] += exact.square_().sum(dim=0)
    return {word: tensor.cpu() for word, tensor in seen.items()}


@contextmanager
def collecting(statistics: Mapping[str, InputStatistics], modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within the block, update each module's statistics at every forward pass.

    Modules that read one tensor in turn share what has been measured of it.

    Raises:
        NotFiniteError: an activation is NaN or infinite; names the module.
    """
    recent: weakref.ref[Tensor] | None = None
    known: dict[Statistic, Tensor] = {}

    def hook_for(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal recent
            if recent is None or recent() is not args[0]:
                known.clear()
                recent = weakref.ref(args[0])
            known.update(measure(args[0], statistics[name].tensors.keys() - known.keys()))
            statistics[name].add(known)
            if not statistics[name].finite:
                raise NotFiniteError(name)

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
    # of an element, the compiled operator takes 1 to 2 ns, NumPy's vectorised selection 5, and torch 7 to 14
    compiled = getattr(torch.ops.nm_export, "nm_topk", None)
    if compiled is not None and tokens.dtype in _COMPILED:
        return compiled(tokens, None, None, 1, 1, _DYNAMIC_MEDIAN, False, False)[1][:, 0]
    middle = (tokens.shape[-1] - 1) // 2
    return torch.from_numpy(np.partition(tokens.float().numpy(), middle, axis=-1)[:, middle])
