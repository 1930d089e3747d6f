"""Robust output biases."""

import numpy as np
import pytest
import torch

from nm_export.calibration import calibrate
from nm_export.calibration.bias import robust_bias
from nm_export.errors import UserError
from tests.tiny_models import sparse_model, token_ids

SEQUENCES = token_ids(samples=6, length=10)


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


def test_each_linear_is_fitted_on_what_the_ones_before_it_produce():
    model = sparse_model(pattern="2:16", output_bias="calibrated")
    calibrate(model, SEQUENCES)
    modules = model.nm_modules()
    assert all(module.nm_bias.isfinite().all() for module in modules.values())
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _, args, y, name=name: seen.__setitem__(name, (args[0], y)))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        model(SEQUENCES)
    for hook in hooks:
        hook.remove()
    for name, (x, y) in seen.items():  # of the finished model: the inputs must be those that were fitted on
        module = modules[name]
        difference = (torch.nn.functional.linear(x, module.weight, module.bias) - (y - module.nm_bias)).detach()
        expected = robust_bias(difference[0::2].flatten(0, 1), difference[1::2].flatten(0, 1))
        torch.testing.assert_close(module.nm_bias, expected, rtol=1e-3, atol=1e-5)
        assert not module._forward_hooks
    biases = [module.nm_bias.clone() for module in modules.values()]
    assert any(bias.any() for bias in biases)
    calibrate(model, SEQUENCES)
    for bias, module in zip(biases, modules.values(), strict=True):
        assert torch.equal(bias, module.nm_bias)


def test_it_needs_text():
    with pytest.raises(UserError, match="q_proj has a calibrated output bias: calibration needs text"):
        calibrate(sparse_model(output_bias="calibrated"))
