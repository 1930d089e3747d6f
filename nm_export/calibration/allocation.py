"""Which linears are pruned, and how much, under a budget of multiply-accumulates.

Each input group (linears that read one tensor and share one selection) is pruned alone at a probe pattern, and the KL
divergence of the model's predictions from the dense model's is its damage. To leading order KL is quadratic in the
error of a layer's outputs, so the damage at another pattern is the probe's times the ratio of the squared output
errors, which one dense pass measures for every pattern. The choice is greedy on the damage per multiply-accumulate
saved (TEAL, arXiv 2408.14690, and WiSparse, arXiv 2602.14452, search step by step with forward passes in between).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nm_export.batches import Tokens
from nm_export.errors import UserError
from nm_export.modeling.modeling_nm_sparse import group_size
from nm_export.progress import track

PATTERNS = tuple(f"{n}:16" for n in range(4, 16))
"""Patterns that a group may get when nothing else is said."""


@dataclass(frozen=True)
class GroupDamage:
    """What pruning one input group alone costs.

    Attributes:
        modules: names of the group's linears.
        macs: multiply-accumulates of the group for one token, dense.
        saved: what each pattern saves of them, 0 to 1.
        kl: mean KL(dense || pruned) in nats for one token, by pattern.
    """

    modules: tuple[str, ...]
    macs: int
    saved: dict[str, float]
    kl: dict[str, float]


def measure_damage(
    model: Any, sequences: Tensor | Tokens, patterns: Sequence[str] = PATTERNS, probe: str | None = None
) -> list[GroupDamage]:
    """Measure each input group of a calibrated sparse model: one forward pass a group and window.

    Args:
        model: `NMSparseForCausalLM`; patterns are tried in place and restored.
        sequences: token ids, int64 `[windows, length]`, or of several lengths. Two to four windows of 256 tokens are
            enough to rank groups.
        patterns: what a group may get, as in a recipe.
        probe: pattern that is measured end to end, the middle one of `patterns` when left out; the others follow from
            their output errors.

    Raises:
        UserError: the M of a pattern does not divide the input channels of a linear.
    """
    modules = model.nm_modules()
    groups = [tuple(group) for group in model.config.sparsity["input_groups"]]
    probe = probe or patterns[len(patterns) // 2]
    tried = tuple(dict.fromkeys((probe, *patterns)))
    for name, module in modules.items():
        for pattern in tried:
            try:
                group_size(pattern, module.in_features)
            except ValueError as error:
                raise UserError(f"sparsity.budget cannot give {name} the pattern {pattern}: {error}") from error
    errors = _output_errors(model, sequences, groups, tried)
    damage = torch.zeros(len(groups), dtype=torch.float64)
    with torch.inference_mode(), model.dense():
        for row in sequences:
            ids = row.unsqueeze(0).to(model.device)
            expected = _log_probabilities(model, ids)
            for index, group in enumerate(track(groups, "Measuring damage", total=len(groups))):
                with _pruned([modules[name] for name in group], probe):
                    actual = _log_probabilities(model, ids)
                kl = F.kl_div(actual, expected, reduction="none", log_target=True).sum(-1)
                damage[index] += kl.mean(dtype=torch.float64).cpu() / len(sequences)
    return [
        GroupDamage(
            modules=group,
            macs=sum(modules[name].weight.numel() for name in group),
            saved={pattern: _saved(pattern, modules[group[0]].in_features) for pattern in patterns},
            kl={pattern: float(damage[index]) * _ratio(errors[group], pattern, probe) for pattern in patterns},
        )
        for index, group in enumerate(groups)
    ]


def allocate(
    damages: Iterable[GroupDamage], saved_share: float, total_macs: int | None = None
) -> dict[str, str | None]:
    """Choose a pattern for every group so that the sum of damages is small and enough is saved.

    Every group walks along the lower convex hull of its (saved, damage) points; of all next steps, the one with the
    least damage per multiply-accumulate saved is taken first. Equal ratios: the earlier group.

    Args:
        damages: of `measure_damage`.
        saved_share: share of the multiply-accumulates that must be saved, 0 to 1.
        total_macs: what the share refers to; by default the sum over all groups.

    Returns:
        The pattern of each module, None where it stays dense.

    Raises:
        UserError: the patterns cannot save that much.
    """
    damages = list(damages)
    target = saved_share * (total_macs or sum(damage.macs for damage in damages))
    steps = sorted(
        (
            (slope, index, saved, pattern)
            for index, damage in enumerate(damages)
            for slope, saved, pattern in _hull(damage)
        ),
        key=lambda step: step[:3],
    )
    chosen: list[str | None] = [None] * len(damages)
    saved_by = [0.0] * len(damages)
    for _, index, saved, pattern in steps:
        if sum(saved_by) >= target:
            break
        chosen[index], saved_by[index] = pattern, saved
    if sum(saved_by) < target * (1 - 1e-9):
        possible = sum(saved_by) / target * saved_share
        raise UserError(
            f"sparsity.budget asks for {saved_share:.1%} of the linears' multiply-accumulates, but the patterns save "
            f"{possible:.1%} at most; lower the budget or add a pattern that keeps less."
        )
    return {name: chosen[index] for index, damage in enumerate(damages) for name in damage.modules}


def _hull(damage: GroupDamage) -> list[tuple[float, float, str]]:
    """Steps (damage per saving, total saving, pattern) along the lower convex hull from (0, 0), slopes ascending."""
    points = [(damage.macs * damage.saved[pattern], kl, pattern) for pattern, kl in damage.kl.items()]
    steps = []
    saved = kl = 0.0
    while remaining := [point for point in points if point[0] > saved]:
        slope, _, best = min(((point[1] - kl) / (point[0] - saved), -point[0], point) for point in remaining)
        saved, kl, pattern = best
        steps.append((slope, saved, pattern))
    return steps


def _saved(pattern: str, channels: int) -> float:
    n, m = group_size(pattern, channels)
    return 1 - n / m


def _ratio(errors: dict[str, float], pattern: str, probe: str) -> float:
    return errors[pattern] / errors[probe] if errors[probe] > 0 else 0.0


def _log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """float32 `[tokens, V]`."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


@contextmanager
def _pruned(modules: Sequence[Any], pattern: str) -> Iterator[None]:
    """Within the block, prune these linears at `pattern`, whatever they did before."""
    before = [(module.n, module.m, module.enabled) for module in modules]
    for module in modules:
        module.n, module.m = group_size(pattern, module.in_features)
        module.enabled = True
    try:
        yield
    finally:
        for module, (n, m, enabled) in zip(modules, before, strict=True):
            module.n, module.m, module.enabled = n, m, enabled


def _output_errors(
    model: Any, sequences: Tensor | Tokens, groups: Sequence[tuple[str, ...]], patterns: Sequence[str]
) -> dict[tuple[str, ...], dict[str, float]]:
    """Squared output error of each group at each pattern, summed over tokens, on the dense model's inputs."""
    modules = model.nm_modules()
    errors = {group: dict.fromkeys(patterns, 0.0) for group in groups}
    busy = False  # the hooks call the modules again

    def hook_for(group: tuple[str, ...], name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], dense: Tensor) -> None:
            nonlocal busy
            if busy:
                return
            busy = True
            for pattern in patterns:
                with _pruned([module], pattern):
                    difference = module(args[0]).float() - dense.float()
                errors[group][pattern] += float(difference.square().sum(dtype=torch.float64))
            busy = False

        return hook

    with ExitStack() as stack:
        for group in groups:
            for name in group:
                stack.callback(modules[name].register_forward_hook(hook_for(group, name)).remove)
        with torch.inference_mode(), model.dense():
            for row in track(sequences, "Measuring output errors", total=len(sequences)):
                model.base_model(input_ids=row.unsqueeze(0).to(model.device), use_cache=False)
    return errors
