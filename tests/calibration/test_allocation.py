"""Allocation under a budget: damages against direct measurement, the choice against every possible one."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nm_export.calibration.allocation import GroupDamage, allocate, measure_damage
from nm_export.errors import UserError
from tests.tiny_models import sparse_model, token_ids

SEQUENCES = token_ids(samples=2, length=24)
PATTERNS = ("4:16", "8:16", "12:16")


def state_of(model):
    return {name: (module.n, module.m, module.enabled) for name, module in model.nm_modules().items()}


@torch.no_grad()
def kl_with_only(model, group, pattern):
    """Mean KL(dense || model with one group pruned), float64."""
    n, m = map(int, pattern.split(":"))
    modules = model.nm_modules()
    before = state_of(model)
    with model.dense():
        dense = model(SEQUENCES).logits.double().log_softmax(-1)
        for name in group:
            modules[name].n, modules[name].m, modules[name].enabled = n, m, True
        pruned = model(SEQUENCES).logits.double().log_softmax(-1)
    for name, (n, m, _) in before.items():
        modules[name].n, modules[name].m = n, m
    return float((dense.exp() * (dense - pruned)).sum(-1).mean())


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_the_probe_is_measured_end_to_end(architecture):
    model = sparse_model(architecture, pattern="2:4")
    before = state_of(model)
    damages = measure_damage(model, SEQUENCES, PATTERNS)  # the middle one is the probe
    assert [list(damage.modules) for damage in damages] == model.config.sparsity["input_groups"]
    for damage in damages:
        assert damage.kl["8:16"] == pytest.approx(kl_with_only(model, damage.modules, "8:16"), rel=1e-3)
        assert damage.saved == {"4:16": 0.75, "8:16": 0.5, "12:16": 0.25}
        assert damage.macs == sum(model.nm_modules()[name].weight.numel() for name in damage.modules)
    assert state_of(model) == before
    assert not any(module._forward_hooks for module in model.modules())


def test_other_patterns_follow_the_output_errors():
    model = sparse_model()
    captured = {}
    name = "model.layers.1.mlp.down_proj"
    hook = model.nm_modules()[name].register_forward_pre_hook(lambda _, args: captured.setdefault("x", args[0]))
    with torch.no_grad(), model.dense():
        model(SEQUENCES)
    hook.remove()

    def error(n):
        x = captured["x"].double().reshape(-1, 16)
        dropped = x.abs().argsort(dim=-1, descending=True)[:, n:]
        lost = torch.zeros_like(x).scatter(-1, dropped, x.gather(-1, dropped)).reshape(-1, 64)
        return float((lost @ model.nm_modules()[name].weight.detach().double().T).square().sum())

    damage = measure_damage(model, SEQUENCES, PATTERNS)[-1]
    assert damage.modules == (name,)
    for n in (4, 12):
        assert damage.kl[f"{n}:16"] / damage.kl["8:16"] == pytest.approx(error(n) / error(8), rel=1e-4)


def test_the_probe_need_not_be_a_candidate():
    model = sparse_model()
    group = ("model.layers.0.self_attn.o_proj",)
    with_probe = {d.modules: d.kl for d in measure_damage(model, SEQUENCES, ["4:16"], probe="12:16")}[group]
    measured = {d.modules: d.kl for d in measure_damage(model, SEQUENCES, ["12:16", "4:16"], probe="12:16")}[group]
    assert with_probe == {"4:16": measured["4:16"]}
    assert measured["12:16"] == pytest.approx(kl_with_only(model, group, "12:16"), rel=1e-3)


def test_measuring_twice_gives_the_same():
    model = sparse_model(score="weight_norm")
    assert measure_damage(model, SEQUENCES, PATTERNS) == measure_damage(model, SEQUENCES, PATTERNS)


def test_a_pattern_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"q_proj the pattern 5:24: 32 input channels"):
        measure_damage(sparse_model(), SEQUENCES, ["8:16", "5:24"])


def damage_of(number, macs, kl):
    return GroupDamage((f"g{number}.a", f"g{number}.b"), macs, {"12:16": 0.25, "8:16": 0.5, "4:16": 0.75}, kl)


@settings(max_examples=100, deadline=None)
@given(
    groups=st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.floats(0.001, 1), min_size=3, max_size=3)), min_size=1, max_size=4
    ),
    share=st.floats(0.01, 0.75),
)
def test_no_choice_that_saves_as_much_does_less_damage(groups, share):
    damages = [
        damage_of(number, macs, dict(zip(("12:16", "8:16", "4:16"), itertools.accumulate(steps), strict=True)))
        for number, (macs, steps) in enumerate(groups)
    ]
    chosen = allocate(damages, share)
    picks = [chosen[damage.modules[0]] for damage in damages]
    assert picks == [chosen[damage.modules[1]] for damage in damages]

    def total(patterns):
        pairs = [(damage, pattern) for damage, pattern in zip(damages, patterns, strict=True) if pattern]
        return sum(d.macs * d.saved[p] for d, p in pairs), sum(d.kl[p] for d, p in pairs)

    saved, kl = total(picks)
    target = share * sum(damage.macs for damage in damages)
    assert saved >= target * (1 - 1e-9)
    # greedy steps along convex hulls are optimal for what they save
    for patterns in itertools.product((None, "12:16", "8:16", "4:16"), repeat=len(damages)):
        other_saved, other_kl = total(patterns)
        assert other_saved < saved * (1 - 1e-9) or other_kl >= kl * (1 - 1e-9)


def test_total_macs_may_count_linears_that_are_never_pruned():
    damages = [damage_of(number, 100, {"8:16": 1.0 + number}) for number in range(4)]
    assert list(allocate(damages, 0.25).values()) == ["8:16"] * 4 + [None] * 4
    assert list(allocate(damages, 0.125, total_macs=800).values()) == ["8:16"] * 4 + [None] * 4


def test_equal_groups_are_taken_in_order():
    damages = [damage_of(number, 100, {"8:16": 1.0}) for number in range(3)]
    assert list(allocate(damages, 0.1).values()) == ["8:16"] * 2 + [None] * 4


def test_a_budget_out_of_reach_is_refused():
    with pytest.raises(UserError, match=r"asks for 60\.0%.*save 50\.0% at most"):
        allocate([damage_of(0, 10, {"8:16": 1.0})], 0.6)
