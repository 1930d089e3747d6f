"""Constant output errors of pruned linears, estimated robustly and given back as a bias.

A plain mean of the errors is owned by a few tokens with huge activations (attention sinks) and makes models worse. Even
a robust one lowers every layer's squared error and yet hurts the model in some kinds of layers, so that each kind has
to prove itself end to end on text that the biases were not fitted on.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nm_export.batches import Tokens, read_tokens
from nm_export.calibration.offload import placed, weights_at_hand
from nm_export.progress import track

SEQUENCES = 24
"""Sequences that are looked at: two thirds to fit biases, all in memory at once, one third to judge them."""


def calibrate_bias(model: Any, names: list[str], sequences: Any) -> list[str]:
    """Fit the `nm_bias` of some linears of a sparse model and keep those that bring it closer to the dense one.

    Linears are judged by kind (the last part of their names) and kinds are accepted greedily, the best alone first. A
    kind that does not lower the KL divergence on held-out sequences further has zeros. With fewer than three sequences
    all have.

    Args:
        model: `NMSparseForCausalLM`, otherwise calibrated.
        names: its linears that may have a bias.
        sequences: token ids, as in `calibrate`; the first `SEQUENCES` are used.

    Returns:
        The kinds that have a bias now, in the order in which they were accepted.
    """
    linears = {name: linear for name, linear in model.nm_modules().items() if name in set(names)}
    for linear in linears.values():
        linear.nm_bias.zero_()
    used = read_tokens(sequences, "calibrate_bias")[:SEQUENCES]
    judges = len(used) // 3
    if judges == 0:
        return []
    with torch.inference_mode():
        fitted = _fit(model, linears, used[:-judges])
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
    return _where_it_helps(bias, _shortened(held_out, limit).sum(dim=0, dtype=torch.float64), len(held_out))


def _where_it_helps(bias: Tensor, errors: Tensor, tokens: int) -> Tensor:
    """The bias of outputs where it lowers the squared error of tokens whose shortened errors have this sum."""
    gain = 2 * bias * errors - tokens * bias.square()
    return torch.where(gain > 0, bias, 0.0).float()


def _shortened(errors: Tensor, limit: Tensor) -> Tensor:
    return errors * (limit / errors.norm(dim=-1, keepdim=True)).clamp(max=1.0).nan_to_num(1.0)


def _fit(model: Any, linears: Mapping[str, Any], tokens: Tokens) -> dict[str, Tensor]:
    """The robust bias of each linear on the sparse model's own inputs; every second sequence is held out."""
    fitted = {name: torch.zeros_like(linear.nm_bias) for name, linear in linears.items()}  # of experts never called
    if tokens.are_of_one_length:  # in one pass, which holds the errors of one linear at a time

        def fit(name: str, errors: Tensor) -> None:
            if errors.dim() > 2 or len(errors) % len(tokens) == 0:  # else some tokens, those of an expert
                errors = errors.reshape(len(tokens), -1, errors.shape[-1])
            if errors.numel():
                fitted[name] = robust_bias(errors[0::2].flatten(0, -2), errors[1::2].flatten(0, -2))

        with _errors_to(fit, linears):
            model.base_model(input_ids=placed(model, torch.stack(tokens.rows)), use_cache=False)
        return fitted

    lengths: dict[str, list[Tensor]] = defaultdict(list)
    _read(model, linears, tokens.rows[0::2], lambda name, errors: lengths[name].append(errors.norm(dim=-1)))
    limits = {name: torch.cat(parts).median() for name, parts in lengths.items()}
    seen, unseen = (_shortened_sums(model, linears, tokens.rows[part::2], limits) for part in (0, 1))
    for name, (total, count) in seen.items():
        fitted[name] = _where_it_helps(total / count, *unseen.get(name, (torch.zeros_like(total), 0)))
    return fitted


def _shortened_sums(
    model: Any, linears: Mapping[str, Any], rows: Sequence[Tensor], limits: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, int]]:
    """Sum and number of the shortened errors of each linear; of those that have a limit."""
    sums: dict[str, tuple[Tensor, int]] = {}

    def add(name: str, errors: Tensor) -> None:
        if name in limits:
            total, count = sums.get(name, (0, 0))
            sums[name] = total + _shortened(errors, limits[name]).sum(dim=0, dtype=torch.float64), count + len(errors)

    _read(model, linears, rows, add)
    return sums


def _read(model: Any, linears: Mapping[str, Any], rows: Sequence[Tensor], take: Callable[[str, Tensor], None]) -> None:
    """Let the model read sequences one at a time, and hand over the errors of each linear, `[T, O]`."""
    with _errors_to(lambda name, errors: take(name, errors.flatten(0, -2)), linears):
        for row in rows:
            model.base_model(input_ids=placed(model, row.unsqueeze(0)), use_cache=False)


@contextmanager
def _errors_to(take: Callable[[str, Tensor], None], linears: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, hand over the errors of each linear, dense minus sparse outputs, float32 `[..., T, O]`."""

    def hook_for(name: str) -> Any:
        def hook(linear: Any, args: tuple[Tensor, ...], sparse: Tensor) -> None:
            with weights_at_hand([linear]):  # an offloaded weight is gone again after the product
                dense = F.linear(args[0], linear.weight, linear.bias)
            take(name, dense.float() - sparse.float())

        return hook

    hooks = [linear.register_forward_hook(hook_for(name)) for name, linear in linears.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _divergence(model: Any, tokens: Tokens) -> float:
    """Mean KL(dense || sparse) in nats for one token."""
    total = 0.0
    for row in tokens:  # one at a time: the logits of many would take more memory than the model
        ids = placed(model, row.unsqueeze(0))
        with model.dense():
            dense = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        sparse = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        total += float(F.kl_div(sparse, dense, reduction="sum", log_target=True))
    return total / tokens.count
