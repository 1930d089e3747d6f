"""KL divergence of next-token distributions, some rows at a time: with a vocabulary, its temporaries would be huge."""

from typing import Any

import torch
from torch import Tensor

_ROWS = 16


def divergence(logits: Tensor, expected: Tensor) -> Tensor:
    """Mean over tokens of KL(expected || logits), nats, float32; the gradient goes to `logits` only.

    Args:
        logits: `[..., vocabulary]`, any float type; computed in float32.
        expected: logits of the distribution that is to be met, of the same shape.
    """
    divergences: Tensor = _Divergence.apply(logits, expected)
    return divergences


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, expected: Tensor) -> Tensor:
        rows = logits.flatten(0, -2)
        gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            log_q = rows[part].float().log_softmax(-1)
            log_p = expected.flatten(0, -2)[part].float().log_softmax(-1)
            p = log_p.exp()
            total += (log_p.sub_(log_q)).mul_(p).sum()
            if gradient is not None:
                gradient[part] = log_q.exp_().sub_(p)
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.shape = logits.shape
        return (total / len(rows)).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * (gradients[0] / len(gradient))).reshape(ctx.shape), None
