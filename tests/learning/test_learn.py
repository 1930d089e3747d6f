"""Both modes on tiny models: they learn, they are deterministic, and they refuse what cannot work."""

import pytest
import torch

from nm_export.calibration.processes import Processes
from nm_export.errors import UserError
from nm_export.learning import blockwise, end_to_end, learn
from nm_export.learning.optimiser import Optimiser
from tests.learning.training import HELD_OUT, MODES, SEQUENCES, assert_equal, calibrated, section, state
from tests.tiny_models import CONFIGS, token_ids

TRAINED = ("nm_shift", "nm_offset", "nm_scale", "nm_bias", "nm_residual_in", "nm_residual_out")
TWICE = torch.cat([SEQUENCES[:4], SEQUENCES[:4]])  # what is held out is what was trained on
LONG = TWICE.repeat(1, 3)


def changed_tensors(model, before):
    return {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_blocks_come_closer_to_the_dense_ones(architecture):
    check_blocks(calibrated(architecture))


def test_blocks_with_two_kinds_of_attention(monkeypatch):
    config = CONFIGS["gemma3"]()
    config.layer_types = ["sliding_attention", "full_attention"]
    monkeypatch.setitem(CONFIGS, "gemma3", lambda: config)
    model, masks = calibrated("gemma3"), []

    def note(layer, args, kwargs):
        masks.append(kwargs["attention_mask"])

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in model.model.layers]
    with torch.no_grad():
        model(LONG)
    for hook in hooks:
        hook.remove()
    assert masks[0] is not None  # the window is shorter than the sequences
    assert masks[1] is None or not torch.equal(*masks)
    check_blocks(model)


def check_blocks(model):
    before = state(model)
    report = learn(model, LONG, section("blockwise", held_out_samples=4))
    assert list(report.held_out) == ["model.layers.0", "model.layers.1"]
    for loss_before, loss_after, kept in report.held_out.values():
        assert kept
        assert loss_after < 0.97 * loss_before
    assert len(report.losses) == 2 * 4 * 2  # blocks, epochs, batches
    changed = changed_tensors(model, before)
    assert changed == {name for name in before if name.endswith(TRAINED)}


def test_blocks_get_inputs_that_came_through_sparse_blocks():
    """The reported loss before training of the second block, computed again from its definition."""
    model = calibrated()
    report = learn(model, SEQUENCES, section("blockwise"))
    layers = model.model.layers
    caught = []
    hook = layers[1].register_forward_pre_hook(lambda _, args, kwargs: caught.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        model(SEQUENCES[-HELD_OUT:], use_cache=False)
        hook.remove()
        args, kwargs = caught[0]
        sparse = layers[1](*args, **kwargs)
        with model.dense():
            dense = layers[1](*args, **kwargs)
    after = report.held_out["model.layers.1"][1]
    assert float((sparse - dense).square().mean()) == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize("loss", ["kl", "lm"])
def test_the_whole_model_learns(loss):
    model, settings = calibrated(), section("end_to_end", loss=loss, held_out_samples=4)
    report = learn(model, TWICE, settings)
    before, after, kept = report.held_out["model"]
    assert kept
    assert after < 0.97 * before
    assert end_to_end.evaluate(model, TWICE[:4], settings) == pytest.approx(after, rel=1e-4)
    assert len(report.losses) == 8
    assert report.losses[-1] < report.losses[0]


def test_the_kl_loss_is_that_of_the_definition():
    model = calibrated()
    with torch.no_grad():
        sparse = model(SEQUENCES).logits.double().log_softmax(-1)
        with model.dense():
            dense = model(SEQUENCES).logits.double().log_softmax(-1)
    expected = float((dense.exp() * (dense - sparse)).sum(-1).mean())
    assert end_to_end.evaluate(model, SEQUENCES, section("end_to_end")) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_run_gives_the_same_bits(mode):
    models = [calibrated() for _ in range(2)]
    parameters = ("shift", "scale", "bias", "residual", "weight")
    reports = [learn(model, SEQUENCES, section(mode, parameters=parameters)) for model in models]
    assert reports[0] == reports[1]
    assert_equal(state(models[0]), state(models[1]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parameter", ["shift", "scale", "bias", "residual", "weight"])
def test_only_what_was_asked_for_is_trained(mode, parameter, monkeypatch):
    _accept_everything(monkeypatch)
    model = calibrated()
    before = state(model)
    learn(model, SEQUENCES, section(mode, parameters=(parameter,)))
    changed = {name.rpartition(".")[2] for name in changed_tensors(model, before)}
    expected = {
        "shift": {"nm_shift", "nm_offset"},
        "scale": {"nm_scale"},
        "bias": {"nm_bias"},
        "residual": {"nm_residual_in", "nm_residual_out"},
        "weight": {"weight"},
    }
    assert changed == expected[parameter]
    rewritten = {f"{name}.weight" for name in model.nm_modules()} if parameter == "weight" else set()
    assert set(model.config.sparsity["rewritten"]) == rewritten


@pytest.mark.parametrize("mode", MODES)
def test_what_gets_worse_keeps_its_start(mode):
    model = calibrated()
    before = state(model)
    settings = section(mode, learning_rate=0.9, schedule="constant", parameters=("scale", "bias", "weight"))
    report = learn(model, SEQUENCES, settings)
    for loss_before, loss_after, kept in report.held_out.values():
        assert loss_after > loss_before
        assert not kept
    assert_equal(state(model), before)
    assert model.config.sparsity["rewritten"] == []


def test_one_block_may_be_kept_and_another_not(monkeypatch):
    scores = iter([1.0, 2.0, 2.0, 1.0])  # before and after, block by block
    monkeypatch.setattr(blockwise._Block, "_mean_loss", lambda *_: next(scores))
    model = calibrated()
    before = state(model)
    report = learn(model, SEQUENCES, section("blockwise", parameters=("scale", "weight")))
    assert [kept for _, _, kept in report.held_out.values()] == [False, True]
    changed = changed_tensors(model, before)
    assert all(name.startswith("model.layers.1.") for name in changed)
    assert model.config.sparsity["rewritten"] == sorted(
        f"{name}.weight" for name in model.nm_modules() if name.startswith("model.layers.1.")
    )


@pytest.mark.parametrize("mode", MODES)
def test_accumulated_passes_are_one_larger_batch(mode):
    one, many = calibrated(), calibrated()
    whole = learn(one, SEQUENCES, section(mode, batch_size=8))
    parts = learn(many, SEQUENCES, section(mode, batch_size=2, gradient_accumulation=4))
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    # the sums differ by rounding; AdamW divides a gradient by its own size, so that tiny ones may go elsewhere
    differences = [float((a - b).abs().max()) for a, b in zip(state(one).values(), state(many).values(), strict=True)]
    assert max(differences) < 0.2 * 5e-3


@pytest.mark.parametrize("mode", MODES)
def test_products_in_bfloat16_train_float32_parameters(mode):
    model, exact = calibrated(), calibrated()
    report = learn(model, TWICE, section(mode, precision="bfloat16", held_out_samples=4))
    expected = learn(exact, TWICE, section(mode, held_out_samples=4))
    assert report.losses != expected.losses
    # single losses differ by up to a third, depending on the order of the samples: other channels are kept
    assert sum(report.losses) == pytest.approx(sum(expected.losses), rel=0.1)
    for part, (before, after, _) in expected.held_out.items():
        assert report.held_out[part][:2] == pytest.approx((before, after), rel=0.1)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("mode", MODES)
def test_a_bfloat16_model_learns(mode):
    model = calibrated().bfloat16()
    report = learn(model, TWICE, section(mode, held_out_samples=4, parameters=("shift", "scale", "weight")))
    assert all(after < before for before, after, _ in report.held_out.values())
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert model.model.layers[0].mlp.up_proj.nm_shift.dtype == torch.float32


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_that_is_nan_ends_the_training(mode):
    model = calibrated()
    before = state(model)
    section_ = section(mode)
    poisoned = SEQUENCES.clone()
    poisoned[-HELD_OUT - 1] = 2  # only one training sequence holds this token
    with torch.no_grad():
        model.get_input_embeddings().weight[2] = float("nan")
    with pytest.raises(UserError, match="Learning diverged"):
        learn(model, poisoned, section_)
    after = state(model)
    assert not any(buffer.requires_grad for buffer in model.buffers())
    assert_equal({k: v for k, v in after.items() if "nm_" in k}, {k: v for k, v in before.items() if "nm_" in k})


def test_other_mistakes():
    neutral = {"shift": "none", "output_scale": False, "output_bias": "none", "residual_rank": 0}
    for mode in MODES:
        for model in (calibrated(**neutral), calibrated(**{**neutral, "shift": "static_scalar"})):
            with pytest.raises(UserError, match="finds nothing to train"):
                learn(model, SEQUENCES, section(mode))
        with pytest.raises(UserError, match=r"has 2 sequences and needs more than .*held_out_samples \(2\)"):
            learn(calibrated(), SEQUENCES[:HELD_OUT], section(mode))
        with pytest.raises(UserError, match=r"4 batches, fewer than learning.gradient_accumulation \(5\)"):
            learn(calibrated(), SEQUENCES, section(mode, gradient_accumulation=5))


def test_blocks_without_anything_to_train_are_passed_through():
    model = calibrated(
        overrides=[
            {"modules": "model.layers.0.*", "shift": "none", "output_scale": False, "output_bias": "none"},
            {"modules": "model.layers.0.mlp.*", "dense": True},
        ],
        residual_rank=0,
    )
    report = learn(model, SEQUENCES, section("blockwise"))
    assert list(report.held_out) == ["model.layers.1"]


@pytest.mark.parametrize("mode", MODES)
def test_linears_of_a_group_go_on_to_prune_alike(mode, monkeypatch):
    _accept_everything(monkeypatch)
    model = calibrated(overrides=[{"modules": "*.k_proj", "output_scale": False}])
    learn(model, SEQUENCES, section(mode))
    modules = model.nm_modules()
    groups = model.config.sparsity["input_groups"]
    assert ["model.layers.0.self_attn.q_proj"] not in groups
    for group in groups:
        shifts = [modules[name].nm_shift for name in group]
        assert shifts[0].any()
        assert all(torch.equal(shift, shifts[0]) for shift in shifts)
        assert len({shift.data_ptr() for shift in shifts}) == len(shifts)  # tensors of their own again


def test_batches_of_several_sizes():
    model = calibrated()
    report = learn(model, token_ids(samples=5 + 3, length=10), section("blockwise", held_out_samples=3, epochs=1))
    assert len(report.losses) == 2 * 3


def test_the_learning_rate_follows_its_schedule():
    rates = {}
    for schedule in ("linear", "cosine", "constant"):
        leaf = torch.zeros(1, requires_grad=True)
        settings = section("blockwise", schedule=schedule, warmup_ratio=0.2, learning_rate=1e-2)
        optimiser = Optimiser({"leaf": leaf}, settings, 10, Processes())
        rates[schedule] = []
        for _ in range(10):
            rates[schedule].append(optimiser.adam.param_groups[0]["lr"])
            leaf.grad = torch.ones(1)
            optimiser.step()
    for found in rates.values():
        assert found[:3] == pytest.approx([0, 5e-3, 1e-2])
    assert rates["linear"][6] == pytest.approx(5e-3)
    assert rates["cosine"][6] == pytest.approx(5e-3)
    assert rates["linear"][8] == pytest.approx(2.5e-3)
    assert rates["cosine"][8] < rates["linear"][8]
    assert rates["constant"][2:] == pytest.approx([1e-2] * 8)


def _accept_everything(monkeypatch):
    falling = iter(range(0, -100, -1))
    monkeypatch.setattr(blockwise._Block, "_mean_loss", lambda *_: next(falling))
    monkeypatch.setattr(end_to_end, "evaluate", lambda *_: next(falling))
