"""Calibration against plain numpy, over inputs that were captured from the dense model."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nm_export.calibration import calibrate, statistics
from nm_export.calibration.statistics import InputStatistics, collecting
from nm_export.errors import UserError
from tests.tiny_models import sparse_model, token_ids

SEQUENCES = token_ids(samples=6, length=10)


def dense_inputs(model, sequences=SEQUENCES):
    """float64 `[tokens, K]` that each pruned linear reads when nothing is pruned."""
    inputs = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
        for name, module in model.nm_modules().items()
    ]
    with torch.no_grad(), model.dense():
        model(sequences)
    for hook in hooks:
        hook.remove()
    return {name: x.double().flatten(0, 1).numpy() for name, x in inputs.items()}


def hooks_of(model):
    return [hook for module in model.modules() for hook in (*module._forward_pre_hooks, *module._forward_hooks)]


def lower_medians(x):
    return np.sort(x, axis=-1)[:, (x.shape[-1] - 1) // 2]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_static_shifts(architecture):
    for shift, statistic in (
        ("static_channel", lambda x: x.mean(axis=0)),
        ("static_scalar", lambda x: lower_medians(x).mean(keepdims=True)),
    ):
        model = sparse_model(architecture, pattern="8:16", shift=shift)
        inputs = dense_inputs(model)
        calibrate(model, SEQUENCES, batch_size=4)
        for name, module in model.nm_modules().items():
            expected = statistic(inputs[name])
            np.testing.assert_allclose(module.nm_shift.numpy(), expected, rtol=1e-5, atol=1e-6)
            weight = module.weight.detach().double().numpy()
            shift_vector = np.broadcast_to(module.nm_shift.double().numpy(), weight.shape[1:])
            np.testing.assert_allclose(module.nm_offset.numpy(), weight @ shift_vector, rtol=1e-6, atol=1e-7)


def test_statistics_are_those_of_the_dense_model():
    model = sparse_model(pattern="1:16", shift="static_channel")
    expected = dense_inputs(model)["model.layers.1.mlp.down_proj"].mean(axis=0)
    calibrate(model, SEQUENCES)
    again = model.nm_modules()["model.layers.1.mlp.down_proj"].nm_shift.clone()
    np.testing.assert_allclose(again.numpy(), expected, rtol=1e-5, atol=1e-6)
    calibrate(model, SEQUENCES)  # now the shifts are in place, and must not matter
    assert torch.equal(model.nm_modules()["model.layers.1.mlp.down_proj"].nm_shift, again)
    assert all(module.enabled for module in model.nm_modules().values())


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_weight_norms_of_all_linears_that_share_an_input(exponent):
    model = sparse_model(score="weight_norm", score_exponent=exponent)
    calibrate(model)
    modules = model.nm_modules()
    for group in (
        [f"model.layers.0.self_attn.{kind}_proj" for kind in "qkv"],
        ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"],
        ["model.layers.1.mlp.down_proj"],
    ):
        stacked = np.concatenate([modules[name].weight.detach().double().numpy() for name in group])
        norms = np.sqrt((stacked**2).sum(axis=0)) ** exponent
        for name in group:
            np.testing.assert_allclose(modules[name].nm_score.numpy(), norms / norms.mean(), rtol=1e-6)


def test_only_linears_of_one_scheme_share_a_score():
    model = sparse_model(score="weight_norm", overrides=[{"modules": "*.v_proj", "pattern": "2:4"}])
    calibrate(model)
    modules = model.nm_modules()
    q, k, v = (modules[f"model.layers.0.self_attn.{kind}_proj"] for kind in "qkv")
    assert torch.equal(q.nm_score, k.nm_score)
    assert not torch.allclose(q.nm_score, v.nm_score)
    norms = v.weight.detach().double().square().sum(dim=0).sqrt()
    torch.testing.assert_close(v.nm_score, (norms / norms.mean()).float())


@settings(max_examples=25, deadline=None)
@given(batch_size=st.integers(1, 9), shift=st.sampled_from(["static_scalar", "static_channel"]))
def test_batch_size_does_not_matter(batch_size, shift):
    one, many = (sparse_model(shift=shift) for _ in range(2))
    calibrate(one, SEQUENCES, batch_size=1)
    calibrate(many, SEQUENCES, batch_size=batch_size)
    for name, module in one.nm_modules().items():
        other = many.nm_modules()[name]
        torch.testing.assert_close(module.nm_shift, other.nm_shift, rtol=1e-5, atol=1e-6)


def test_only_one_of_a_group_is_hooked_and_hooks_are_gone_afterwards(monkeypatch):
    model = sparse_model(shift="static_channel")
    measured = []
    measure = statistics.measure
    monkeypatch.setattr(statistics, "measure", lambda x, wanted: (measured.append(x.shape), measure(x, wanted))[1])
    calibrate(model, SEQUENCES, batch_size=3)
    assert len(measured) == 2 * 2 * 4  # batches x layers x inputs (attention, output, MLP, down)
    assert not hooks_of(model)


def test_hooks_are_gone_after_an_exception():
    model = sparse_model(shift="static_channel")

    def fail(*_):
        raise RuntimeError("out of luck")

    handle = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        calibrate(model, SEQUENCES)
    handle.remove()
    assert not hooks_of(model)
    assert all(module.enabled for module in model.nm_modules().values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_are_named(value):
    model = sparse_model(shift="static_scalar")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[0] = value
    with pytest.raises(UserError, match=r"model\.layers\.1\.self_attn\.q_proj holds NaN or infinite"):
        calibrate(model, SEQUENCES)
    assert not hooks_of(model)


def test_a_static_shift_needs_text():
    with pytest.raises(UserError, match=r"q_proj has a static shift: calibration needs text"):
        calibrate(sparse_model(shift="static_channel"))


def test_no_forward_pass_without_a_static_shift():
    model = sparse_model(score="weight_norm", shift="dynamic_mean")
    model.model.forward = None  # calling it would fail
    calibrate(model, SEQUENCES)
    q = model.nm_modules()["model.layers.0.self_attn.q_proj"]
    torch.testing.assert_close(q.nm_offset, q.weight.detach().double().sum(dim=1).float())


def test_collecting_removes_its_hooks_when_it_fails():
    linear = torch.nn.Linear(4, 4)
    with (
        pytest.raises(UserError, match=r"some\.name"),
        collecting({"some.name": InputStatistics(4)}, {"some.name": linear}),
    ):
        linear(torch.full((1, 4), torch.nan))
    assert not linear._forward_pre_hooks
