"""Calibration against plain numpy, over inputs that were captured from the dense model."""

import accelerate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nm_export.calibration import calibrate, statistics
from nm_export.calibration.scores import amber_score
from nm_export.errors import UserError
from nm_export.modeling import NMSparseForCausalLM
from nm_export.plan import make_plan
from nm_export.recipe import Recipe
from tests.tiny_models import ARCHITECTURES, dense_model, sparse_model, token_ids

SEQUENCES = token_ids(samples=6, length=10)
OTHER_STATISTICS = [{"modules": ["*.down_proj"], "score": "smoothquant", "shift": "static_channel"}]


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


def assert_same_buffers(one, other):
    """Bit for bit."""
    for name, module in one.nm_modules().items():
        for buffer, value in module.named_buffers():
            assert torch.equal(other.nm_modules()[name].get_buffer(buffer), value), f"{name}.{buffer}"


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


def test_no_forward_pass_without_a_static_shift():
    model = sparse_model(score="weight_norm", shift="dynamic_mean")
    model.model.forward = None  # calling it would fail
    calibrate(model, SEQUENCES)
    q = model.nm_modules()["model.layers.0.self_attn.q_proj"]
    torch.testing.assert_close(q.nm_offset, q.weight.detach().double().sum(dim=1).float())


GROUPS = (
    [f"model.layers.0.self_attn.{kind}_proj" for kind in "qkv"],
    ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"],
    ["model.layers.1.mlp.down_proj"],
)


def scores_of(x, stacked):
    """Every score from the inputs `[tokens, K]` and the stacked weights `[O, K]`, not scaled."""
    return {
        "clact": np.linalg.norm(x, axis=0),
        "smoothquant": np.sqrt(np.abs(stacked).max(axis=0) / np.abs(x).max(axis=0)),
        "weight_norm": np.linalg.norm(stacked, axis=0),
    }


@pytest.mark.parametrize("score", ["clact", "smoothquant", "weight_norm"])
@pytest.mark.parametrize("shift", ["none", "static_scalar", "static_channel", "dynamic_mean"])
def test_scores_and_shifts_combine(score, shift):
    model = sparse_model(score=score, shift=shift)
    inputs = dense_inputs(model)
    calibrate(model, SEQUENCES, batch_size=4)
    modules = model.nm_modules()
    for group in GROUPS:
        x = inputs[group[0]]
        stacked = np.concatenate([modules[name].weight.detach().double().numpy() for name in group])
        expected = scores_of(x, stacked)[score]
        shifts = {"static_scalar": [lower_medians(x).mean()], "static_channel": x.mean(axis=0)}
        for name in group:
            np.testing.assert_allclose(modules[name].nm_score.numpy(), expected / expected.mean(), rtol=2e-5)
            if shift in shifts:
                np.testing.assert_allclose(modules[name].nm_shift.numpy(), shifts[shift], rtol=1e-5, atol=1e-6)
            else:
                assert modules[name].nm_shift is None


def test_amber_and_residuals_come_from_the_weights_without_a_forward_pass():
    model = sparse_model(score="amber", residual_rank=6)
    model.model.forward = None  # calling it would fail
    calibrate(model)
    modules = model.nm_modules()
    for group in GROUPS:
        weights = [modules[name].weight.detach() for name in group]
        for name, weight in zip(group, weights, strict=True):
            assert torch.equal(modules[name].nm_score, amber_score(weights))
            U, S, Vt = np.linalg.svd(weight.double().numpy())
            product = (modules[name].nm_residual_out @ modules[name].nm_residual_in).numpy()
            np.testing.assert_allclose(product, (U[:, :6] * S[:6]) @ Vt[:6], atol=1e-5)


def test_a_residual_of_full_rank_makes_the_model_dense_again():
    model = sparse_model(pattern="4:16", residual_rank=64)
    calibrate(model)
    sparse = model(SEQUENCES).logits
    with model.dense():
        torch.testing.assert_close(sparse, model(SEQUENCES).logits, rtol=1e-4, atol=1e-4)


def test_weights_are_pruned_after_the_statistics_of_the_dense_model():
    overrides = [{"modules": "model.layers.0.mlp.*", "prune": "weights", "shift": "none"}]
    model = sparse_model(shift="static_channel", overrides=overrides)
    dense = dense_inputs(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    calibrate(model, SEQUENCES)
    for name, parameter in model.named_parameters():
        zeros = (parameter.view(len(parameter), -1) == 0).double().mean()
        if "layers.0.mlp" in name:
            assert zeros == 0.5
            assert torch.equal(parameter, before[name] * (parameter != 0))
        else:
            assert torch.equal(parameter, before[name])
    name = "model.layers.1.mlp.down_proj"  # reads what the pruned weights of the layer before it produce
    np.testing.assert_allclose(
        model.nm_modules()[name].nm_shift.numpy(), dense[name].mean(axis=0), rtol=1e-5, atol=1e-6
    )


def test_what_is_learned_stays_neutral():
    learned = Recipe(
        model={"source": "in-memory"},
        sparsity={"shift": "learned", "output_scale": True, "output_bias": "learned"},
        learning={"mode": "end_to_end", "parameters": ["shift", "scale", "bias"]},
    )
    dense = dense_model()
    model = NMSparseForCausalLM.from_dense(dense, make_plan(dense, learned).sparsity())
    model.model.forward = None
    calibrate(model)
    for module in model.nm_modules().values():
        assert not module.nm_shift.any()
        assert not module.nm_offset.any()
        assert not module.nm_bias.any()
        assert (module.nm_scale == 1).all()


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [({"shift": "static_channel"}, "has a static shift"), ({"score": "clact"}, "has the score clact")],
)
def test_what_needs_text_says_so(scheme, reason):
    with pytest.raises(UserError, match=f"q_proj {reason}: calibration needs text"):
        calibrate(sparse_model(**scheme))


def test_inputs_under_two_schemes_are_measured_once(monkeypatch):
    override = {"modules": ["*.q_proj", "*.up_proj"], "pattern": "4:16"}
    model = sparse_model(score="clact", shift="static_channel", overrides=[override])
    measured = []
    measure = statistics.measure
    monkeypatch.setattr(statistics, "measure", lambda x, wanted: (measured.append(len(wanted)), measure(x, wanted))[1])
    calibrate(model, SEQUENCES, batch_size=6)
    assert sum(map(bool, measured)) == 2 * 4
    modules = model.nm_modules()
    q, k = (modules[f"model.layers.1.self_attn.{kind}_proj"] for kind in "qk")
    assert torch.equal(q.nm_shift, k.nm_shift)


def test_a_channel_that_is_always_zero():
    for score in ("clact", "smoothquant"):
        model = sparse_model(score=score, shift="static_channel")
        with torch.no_grad():
            model.model.layers[0].input_layernorm.weight[5] = 0
        calibrate(model, SEQUENCES)
        q = model.nm_modules()["model.layers.0.self_attn.q_proj"]
        assert q.nm_shift[5] == 0
        assert q.nm_score.isfinite().all()
        assert (q.nm_score > 0).all()


def test_one_token_is_enough():
    model = sparse_model(score="clact", shift="static_scalar")
    calibrate(model, SEQUENCES[:1, :1])
    assert all(module.nm_score.isfinite().all() for module in model.nm_modules().values())


@pytest.mark.parametrize("block_by_block", [False, True])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_offloaded_weights(where, block_by_block, tmp_path):
    schemes = {"score": "smoothquant", "shift": "static_channel", "residual_rank": 4, "output_bias": "calibrated"}
    override = {"modules": "*.down_proj", "score": "amber", "shift": "dynamic_mean"}
    here, away = (sparse_model(**schemes, overrides=[override]) for _ in range(2))
    calibrate(here, SEQUENCES)
    if where == "memory":
        accelerate.cpu_offload(away, execution_device="cpu")
    else:
        accelerate.disk_offload(away, tmp_path, execution_device="cpu")
    assert away.nm_modules()["model.layers.0.mlp.down_proj"].weight.is_meta
    calibrate(away, SEQUENCES, block_by_block=block_by_block)
    for name, module in here.nm_modules().items():
        other = away.nm_modules()[name]
        assert other.weight.is_meta
        for buffer, value in module.named_buffers():
            torch.testing.assert_close(other.get_buffer(buffer), value, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_block_by_block_finds_the_same_bits(architecture):
    """Batches of two shapes; Gemma 3 gives its two kinds of blocks different masks and angles."""
    schemes = {"score": "clact", "shift": "static_scalar", "overrides": OTHER_STATISTICS}
    sequences = token_ids(samples=5, length=24)
    whole, blocks = (sparse_model(architecture, **schemes) for _ in range(2))
    calibrate(whole, sequences, batch_size=2, block_by_block=False)
    calibrate(blocks, sequences, batch_size=2, block_by_block=True)
    assert_same_buffers(whole, blocks)


# the first batch goes through once more, to see what blocks are called with
BY_BLOCK, WHOLE = [0, 1, 0, 0, 0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("available", "asked", "expected"),
    [(1.9, None, BY_BLOCK), (2.1, None, WHOLE), (1.9, False, WHOLE), (2.1, True, BY_BLOCK)],
)
def test_a_block_is_done_with_all_batches_before_the_next_if_memory_is_short(available, asked, expected, monkeypatch):
    model = sparse_model(score="clact")
    size = sum(parameter.nbytes for parameter in model.parameters())
    monkeypatch.setattr("nm_export.memory.available_bytes", lambda: int(available * size))
    order = []
    for index, block in enumerate(model.model.layers):
        block.register_forward_pre_hook(lambda *_, index=index: order.append(index))
    calibrate(model, token_ids(samples=6, length=8), batch_size=2, block_by_block=asked)
    assert order == expected


def test_a_block_that_sees_more_than_hidden_states_is_not_run_alone():
    model = sparse_model(score="clact")

    def look_at_ids(block, args, kwargs):
        return args, {**kwargs, "ids": model.seen}

    model.model.embed_tokens.register_forward_pre_hook(lambda _, args: setattr(model, "seen", args[0]))
    model.model.layers[0].register_forward_pre_hook(look_at_ids, with_kwargs=True)
    with pytest.raises(UserError, match="cannot run block by block"):
        calibrate(model, token_ids(samples=4), batch_size=2, block_by_block=True)


def test_weights_that_are_offloaded_cannot_be_pruned():
    model = sparse_model(overrides=[{"modules": "*.up_proj", "prune": "weights"}])
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(UserError, match=r"up_proj needs the weight in memory"):
        calibrate(model)
