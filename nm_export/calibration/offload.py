"""Models that Accelerate keeps partly on another device or on disk."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from accelerate.utils import align_module_device
from torch import Tensor


@contextmanager
def weights_at_hand(linears: Sequence[Any]) -> Iterator[None]:
    """Within the block, the weights of these linears are loaded where they are computed with."""
    with ExitStack() as stack:
        for linear in linears:
            stack.enter_context(align_module_device(linear))
        yield


def placed(model: Any, ids: Tensor) -> Tensor:
    """Return token ids where the model's forward takes them."""
    # the first parameter of an offloaded model is nowhere; its hooks move the ids themselves
    return ids if model.device.type == "meta" else ids.to(model.device)
