"""Constant output errors of pruned linears, estimated robustly and given back as a bias.

A plain mean of the errors is owned by a few tokens with huge activations (attention sinks) and makes models worse.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def robust_bias(fitted: Tensor, held_out: Tensor) -> Tensor:
    """Return the bias that repairs a typical token: 0 for outputs where it does not help tokens that it has not seen.

    Errors longer than the median length are shortened to it, in both parts. Of the shortened errors of `fitted` the
    bias is the mean; an output keeps its bias if that lowers the squared error over `held_out`.

    Args:
        fitted: dense minus sparse outputs, float32 `[tokens, O]`, at least one token.
        held_out: the same for other tokens; without any, every bias is 0.

    Returns:
        float32 `[O]`.
    """
    limit = fitted.norm(dim=-1).median()
    bias = _shortened(fitted, limit).mean(dim=0, dtype=torch.float64)
    gain = 2 * bias * _shortened(held_out, limit).sum(dim=0, dtype=torch.float64) - len(held_out) * bias.square()
    return torch.where(gain > 0, bias, 0.0).float()


def _shortened(errors: Tensor, limit: Tensor) -> Tensor:
    return errors * (limit / errors.norm(dim=-1, keepdim=True)).clamp(max=1.0).nan_to_num(1.0)


@contextmanager
def fitting_bias(modules: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, a forward pass sets the `nm_bias` of each module and goes on with it.

    One pass over all tokens is the whole calibration: each linear is fitted on the inputs that the linears before it,
    pruned and with their new biases, produce. Every second sequence of the batch is held out.
    """

    def hook(module: Any, args: tuple[Tensor, ...], sparse: Tensor) -> Tensor:
        dense = F.linear(args[0], module.weight, module.bias).float()
        errors = dense - sparse.float()  # the bias is 0 so far
        sequences = errors.reshape(-1, *errors.shape[-2:])
        module.nm_bias.copy_(robust_bias(sequences[0::2].flatten(0, 1), sequences[1::2].flatten(0, 1)))
        return (sparse.float() + module.nm_bias).to(sparse.dtype)

    for module in modules.values():
        module.nm_bias.zero_()
    hooks = [module.register_forward_hook(hook) for module in modules.values()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
