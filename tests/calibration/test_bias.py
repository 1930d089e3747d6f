"""Robust output biases."""

import numpy as np
import pytest
import torch

from nm_export.calibration import calibrate
from nm_export.calibration.bias import calibrate_bias, robust_bias
from nm_export.errors import UserError
from tests.tiny_models import sparse_model, token_ids

SEQUENCES = token_ids(samples=9, length=24)
FITTED, JUDGES = SEQUENCES[:6], SEQUENCES[6:]


def errors(tokens, outputs=6, seed=0):
    return torch.randn(tokens, outputs, generator=torch.Generator().manual_seed(seed))


def plain(fitted, held_out):
    """The same as loops over tokens."""
    lengths = np.linalg.norm(fitted, axis=1)
    limit = np.sort(lengths)[(len(lengths) - 1) // 2]

    def shorten(rows):
        return np.array([row * min(1, limit / length) if (length := np.linalg.norm(row)) else row for row in rows])

    bias = shorten(fitted).mean(axis=0)
    unseen = shorten(held_out)
    helps = ((unseen - bias) ** 2).sum(axis=0) < (unseen**2).sum(axis=0)
    return np.where(helps, bias, 0)


@pytest.mark.parametrize("offset", [0.0, 0.3, 3.0])
def test_the_bias_is_the_mean_of_shortened_errors_where_that_helps(offset):
    fitted, held_out = errors(40) + offset, errors(31, seed=1) + offset
    fitted[3] = 0
    bias = robust_bias(fitted, held_out)
    np.testing.assert_allclose(bias.numpy(), plain(fitted.double().numpy(), held_out.double().numpy()), rtol=1e-5)
    if offset == 3:
        assert (bias > 1).all()


def test_one_huge_token_moves_it_little():
    fitted, held_out = errors(64) + 1, errors(64, seed=1) + 1
    before = robust_bias(fitted, held_out)
    fitted[5] = 1e6
    assert (robust_bias(fitted, held_out) - before).norm() < 0.05 * before.norm()
    assert fitted.mean(dim=0).norm() > 1e4  # a plain mean is lost


def test_without_held_out_tokens_or_errors_there_is_none():
    assert not robust_bias(errors(8) + 1, errors(0)).any()
    assert not robust_bias(torch.zeros(8, 3), torch.zeros(8, 3)).any()


def calibrated(**scheme):
    model = sparse_model(pattern="2:16", output_bias="calibrated", **scheme)
    calibrate(model, SEQUENCES)
    return model


@torch.no_grad()
def divergence(model):
    """Mean KL(dense || sparse) on the sequences that judge, float64."""
    sparse = model(JUDGES).logits.double().log_softmax(-1)
    with model.dense():
        dense = model(JUDGES).logits.double().log_softmax(-1)
    return float((dense.exp() * (dense - sparse)).sum(-1).mean())


def test_the_biases_are_fitted_on_the_sparse_models_inputs_and_kept_where_they_help():
    model, plain_model = calibrated(), sparse_model(pattern="2:16")
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _, args, y, name=name: seen.__setitem__(name, (args[0], y)))
        for name, module in plain_model.nm_modules().items()
    ]
    with torch.no_grad():
        plain_model(FITTED)
    for hook in hooks:
        hook.remove()
    kept = set()
    for name, module in model.nm_modules().items():
        if module.nm_bias.any():
            x, y = seen[name]
            errors = (torch.nn.functional.linear(x, module.weight, module.bias) - y).detach()
            expected = robust_bias(errors[0::2].flatten(0, 1), errors[1::2].flatten(0, 1))
            torch.testing.assert_close(module.nm_bias, expected, rtol=1e-4, atol=1e-6)
            kept.add(name.rpartition(".")[2])
        assert not module._forward_hooks
    assert kept
    assert divergence(model) < divergence(plain_model)


def test_the_kind_accepted_last_is_needed():
    model = sparse_model(pattern="2:16", output_bias="calibrated")
    accepted = calibrate_bias(model, list(model.nm_modules()), SEQUENCES)
    have = {name.rpartition(".")[2] for name, module in model.nm_modules().items() if module.nm_bias.any()}
    assert have == set(accepted)
    with_all = divergence(model)
    for name, module in model.nm_modules().items():
        if name.endswith(accepted[-1]):
            module.nm_bias.zero_()
    assert divergence(model) > with_all


def test_calibrating_again_gives_the_same():
    model = calibrated()
    biases = {name: module.nm_bias.clone() for name, module in model.nm_modules().items()}
    calibrate(model, SEQUENCES)
    for name, module in model.nm_modules().items():
        assert torch.equal(module.nm_bias, biases[name])


def test_too_few_sequences_leave_no_bias():
    model = sparse_model(output_bias="calibrated")
    assert calibrate_bias(model, list(model.nm_modules()), SEQUENCES[:2]) == []
    assert not any(module.nm_bias.any() for module in model.nm_modules().values())


def test_it_needs_text():
    with pytest.raises(UserError, match="q_proj has a calibrated output bias: calibration needs text"):
        calibrate(sparse_model(output_bias="calibrated"))
