"""`nm_export.trainable`: right gradients, one shift for an input, and what is left when the block ends."""

import pytest
import torch

import nm_export
from nm_export.errors import UserError
from tests.learning.training import assert_equal, state
from tests.tiny_models import dense_model, token_ids

IDS = token_ids(samples=4, length=12)
LEARNED = {"shift": "learned", "output_scale": True, "output_bias": "learned", "score": "weight_norm"}


def sparse(**changes):
    model = nm_export.sparsify(dense_model(), **{**LEARNED, **changes})
    nm_export.calibrate(model)
    return model


def loss_of(model):
    return model(input_ids=IDS, labels=IDS, use_cache=False).loss


def test_a_loop_of_ones_own_learns_and_exports(tmp_path, tiny_source):
    model = sparse()
    dense = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with torch.no_grad():
        before = float(loss_of(model))
    with nm_export.trainable(model, ["shift", "scale", "bias"]) as leaves:
        assert not any(parameter.requires_grad for parameter in model.parameters())
        optimiser = torch.optim.AdamW(leaves.values(), lr=1e-2)
        for _ in range(8):
            loss = loss_of(model)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    with torch.no_grad():
        after = float(loss_of(model))
    assert after < 0.97 * before
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, dense[name]) for name, tensor in model.named_parameters())
    for group in model.config.sparsity["input_groups"]:
        shifts = [model.get_submodule(name).nm_shift for name in group]
        assert all(torch.equal(shifts[0], other) for other in shifts)
        assert shifts[0].abs().max() > 0
    module = model.get_submodule("model.layers.1.mlp.down_proj")
    expected = module.weight.double() @ module.nm_shift.double()
    torch.testing.assert_close(module.nm_offset, expected.float())


def test_the_gradient_of_a_shift_goes_through_the_weight():
    """Against finite differences of the model itself, with offsets brought up to date."""
    model = sparse(targets=["model.layers.0.mlp.down_proj"], pattern="4:16", score="magnitude")
    module = model.get_submodule("model.layers.0.mlp.down_proj")
    with nm_export.trainable(model, "shift") as leaves:
        loss_of(model).backward()
        gradient = leaves["model.layers.0.mlp.down_proj.nm_shift"].grad.clone()
    direction = gradient / gradient.norm()
    losses = []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            module.nm_shift.copy_(direction * step)
            module.update_offset()
            losses.append(float(loss_of(model).double()))
    assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(float(gradient.norm()), rel=0.05)


def test_an_error_leaves_everything_as_it_was():
    model = sparse()
    before = state(model)
    with pytest.raises(RuntimeError, match="stop"):
        spoil(model)
    assert_equal(state(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def spoil(model):
    with nm_export.trainable(model, ["shift", "weight"]) as leaves, torch.no_grad():
        for leaf in leaves.values():
            leaf.add_(1)
        raise RuntimeError("stop")


def test_updated_weights_are_listed():
    model = sparse()
    with nm_export.trainable(model, ["weight"], weight_rank=2) as leaves, torch.no_grad():
        leaves["model.layers.0.mlp.down_proj.update_out"].fill_(0.1)
    assert model.config.sparsity["rewritten"] == ["model.layers.0.mlp.down_proj.weight"]
    leaf_free = sparse()
    with nm_export.trainable(leaf_free, ["weight"]) as leaves:
        leaves.reset()
    assert leaf_free.config.sparsity["rewritten"] == []


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (["shfit"], "there is no parameter 'shfit'; did you mean shift?"),
        ("everything", "they are shift, scale, bias, residual, weight"),
        (["residual"], "finds nothing to train"),
        (5, "parameters are a list of shift, scale, bias, residual, weight, not an int"),
        ([], "finds nothing to train"),
    ],
)
def test_what_cannot_be_trained_is_refused(parameters, sentence):
    with pytest.raises(UserError, match=sentence), nm_export.trainable(sparse(), parameters):
        pass


def test_learned_parameters_are_neutral_until_they_are_trained():
    model, plain = sparse(), nm_export.sparsify(dense_model(), "8:16", score="weight_norm")
    nm_export.calibrate(plain)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, plain(IDS).logits)


def test_learn_takes_the_sections_fields():
    by_section, by_fields = sparse(), sparse()
    fields = {"mode": "end_to_end", "parameters": ["shift", "bias"], "held_out_samples": 1, "learning_rate": 1e-2}
    reports = [
        nm_export.learn(by_section, IDS, nm_export.LearningSection(**fields)),
        nm_export.learn(by_fields, IDS, **fields),
    ]
    assert reports[0] == reports[1]
    assert_equal(state(by_section), state(by_fields))
    held_out = reports[0].held_out["model"]
    assert held_out.kept == (held_out.after < held_out.before)
    assert "HeldOut(before=" in str(reports[0])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "mode is none"),
        ({"section": nm_export.LearningSection()}, "mode is none"),
        ({"mode": "end2end"}, "mode is 'end2end'; it must be none, blockwise or end_to_end; did you mean end_to_end?"),
        ({"mode": "blockwise", "learnig_rate": 1}, "unknown key learnig_rate; did you mean learning_rate?"),
        ({"mode": "blockwise", "parameters": ["shifts"]}, r"'shifts'; it must be .*; did you mean shift\?$"),
        ({"mode": "blockwise", "num_samples": 3}, "num_samples is of recipes"),
        ({"mode": "blockwise", "loss": "lm"}, "loss is of mode end_to_end"),
        (
            {"mode": "end_to_end", "weight_rank": 3},
            "weight_rank is about training weight, which parameters do not name",
        ),
        ({"section": "blockwise"}, "a LearningSection or its fields as keyword arguments, not a str"),
        ({"section": nm_export.LearningSection(mode="blockwise"), "epochs": 2}, "not both"),
        (
            {"section": nm_export.LearningSection(mode="blockwise", num_samples=7, held_out_samples=1)},
            "given 4 sequences, and its section wants 7 and 1 that are held out",
        ),
        (
            {"section": nm_export.LearningSection(mode="blockwise", sequence_length=7, held_out_samples=1)},
            "sequences of 12 to 12 tokens, and its section wants 7",
        ),
    ],
)
def test_wrong_settings_get_the_sentence_of_a_recipe(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        nm_export.learn(sparse(), IDS, **arguments)


def test_a_mapping_is_as_good_as_a_section():
    report = nm_export.learn(sparse(), IDS, {"mode": "end_to_end", "held_out_samples": 1})
    assert report.mode == "end_to_end"
