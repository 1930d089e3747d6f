"""Constant output errors of pruned linears, estimated robustly and given back as a bias.

A plain mean of the errors is owned by a few tokens with huge activations (attention sinks) and makes models worse. Even
a robust one lowers every layer's squared error and yet hurts the model in some kinds of layers, so that each kind has
to prove itself end to end on text that the biases were not fitted on.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nm_export.calibration.offload import placed, weights_at_hand
from nm_export.progress import track

SEQUENCES = 24
"""Sequences that are looked at: two thirds to fit biases, all in memory at once, one third to judge them."""


def calibrate_bias(model: Any, names: list[str], sequences: Tensor) -> list[str]:
    """Fit the `nm_bias` of some linears of a sparse model and keep those that bring it closer to the dense one.

    Linears are judged by kind (the last part of their names) and kinds are accepted greedily, the best alone first. A
    kind that does not lower the KL divergence on held-out sequences further has zeros. With fewer than three sequences
    all have.

    Args:
        model: `NMSparseForCausalLM`, otherwise calibrated.
        names: its linears that may have a bias.
        sequences: token ids, int64 `[samples, length]`; the first `SEQUENCES` are used.

    Returns:
        The kinds that have a bias now, in the order in which they were accepted.
    """
    linears = {name: linear for name, linear in model.nm_modules().items() if name in set(names)}
    for linear in linears.values():
        linear.nm_bias.zero_()
    used = sequences[:SEQUENCES]
    judges = len(used) // 3
    if judges == 0:
        return []
    with torch.inference_mode():
        fitted = {name: torch.zeros_like(linear.nm_bias) for name, linear in linears.items()}
        with _fitting(linears, fitted, len(used) - judges):
            model.base_model(input_ids=placed(model, used[:-judges]), use_cache=False)
        kinds: dict[str, list[str]] = defaultdict(list)
        for name in linears:
            kinds[name.rpartition(".")[2]].append(name)

        def divergence_with(accepted: list[str]) -> float:
            for kind, members in kinds.items():
                for name in members:
                    linears[name].nm_bias.copy_(fitted[name] if kind in accepted else torch.zeros_like(fitted[name]))
            return _divergence(model, used[-judges:])

        best = divergence_with([])
        alone = {kind: divergence_with([kind]) for kind in track(kinds, "Judging biases", total=len(kinds))}
        accepted: list[str] = []
        for kind in sorted((kind for kind in kinds if alone[kind] < best), key=lambda kind: alone[kind]):
            divergence = divergence_with([*accepted, kind]) if accepted else alone[kind]
            if divergence < best:
                accepted, best = [*accepted, kind], divergence
        divergence_with(accepted)
    return accepted


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
def _fitting(linears: Mapping[str, Any], fitted: dict[str, Tensor], sequences: int) -> Iterator[None]:
    """Within the block, a forward pass over so many sequences fits each linear on the sparse model's own inputs.

    Every second sequence of the batch is held out; of an expert's tokens every second one.
    """

    def hook_for(name: str) -> Any:
        def hook(linear: Any, args: tuple[Tensor, ...], sparse: Tensor) -> None:
            with weights_at_hand([linear]):  # an offloaded weight is gone again after the product
                dense = F.linear(args[0], linear.weight, linear.bias)
            errors = dense.float() - sparse.float()
            if errors.dim() > 2 or len(errors) % sequences == 0:  # else some tokens, those of an expert
                errors = errors.reshape(sequences, -1, errors.shape[-1])
            if errors.numel():
                fitted[name] = robust_bias(errors[0::2].flatten(0, -2), errors[1::2].flatten(0, -2))

        return hook

    hooks = [linear.register_forward_hook(hook_for(name)) for name, linear in linears.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _divergence(model: Any, sequences: Tensor) -> float:
    """Mean KL(dense || sparse) in nats for one token."""
    total = 0.0
    for row in sequences:  # one at a time: the logits of many would take more memory than the model
        ids = placed(model, row.unsqueeze(0))
        with model.dense():
            dense = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        sparse = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        total += float(F.kl_div(sparse, dense, reduction="sum", log_target=True))
    return total / sequences.numel()
