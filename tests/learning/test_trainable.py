"""Gradients of pruned linears in training, and what a training leaves behind."""

import pytest
import torch
from torch import nn

from nm_export.errors import UserError
from nm_export.learning.trainable import TrainedLinear, trainable
from nm_export.modeling.modeling_nm_sparse import NMSparseLinear
from tests.learning.training import assert_equal, calibrated, state
from tests.tiny_models import token_ids

K, O, TOKENS, RANK = 16, 6, 5, 3  # noqa: E741
EVERYTHING = ("shift", "scale", "bias", "residual", "weight")
SHIFTS = ("none", "learned", "static_channel", "static_scalar", "dynamic_mean", "dynamic_median")
EPS = 1 / 128


def linear(shift="learned", variance_correction=False, phase="both", dtype=torch.float32, grouping="neighbours"):
    """A linear with every parameter, none of them neutral."""
    generator = torch.Generator().manual_seed(3)
    scheme = {
        "pattern": "4:8",
        "grouping": grouping,
        "score": "weight_norm",
        "shift": shift,
        "phase": phase,
        "variance_correction": variance_correction,
        "output_scale": True,
        "output_bias": "learned",
        "residual_rank": RANK,
    }
    dense = nn.Linear(K, O)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    module = NMSparseLinear(dense.to(dtype), scheme)
    for name, buffer in module.named_buffers():
        noise = torch.randn(buffer.shape, generator=generator)
        buffer.copy_(
            {"nm_score": 1 + 0.01 * noise, "nm_scale": 1 + 0.3 * noise, "nm_shift": 0.05 * noise}.get(name, noise)
        )
    module.update_offset()
    return module


def separated_input():
    """`[TOKENS, K]` whose magnitudes are 0.5 or more apart, so that small changes choose the same channels."""
    generator = torch.Generator().manual_seed(4)
    rows = [torch.linspace(0.5, 8, K)[torch.randperm(K, generator=generator)] for _ in range(TOKENS)]
    signs = torch.randint(0, 2, (TOKENS, K), generator=generator) * 2 - 1
    return torch.stack(rows) * signs


def weighted_sum(module, x, weights):
    return (module(x).double() * weights).sum()


@pytest.mark.parametrize("grouping", ["neighbours", "strided"])
@pytest.mark.parametrize("variance_correction", [False, True], ids=["plain", "var"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_gradients_are_finite_differences_with_the_kept_set_fixed(shift, variance_correction, grouping):
    module = linear(shift, variance_correction, grouping=grouping)
    x = separated_input().requires_grad_()
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(TOKENS, O, generator=generator, dtype=torch.float64)
    with trainable(module, {"linear": module}, EVERYTHING, weight_rank=RANK) as leaves:
        assert isinstance(module, TrainedLinear)
        with torch.no_grad():
            leaves["linear.update_out"].normal_(generator=generator)
        assert ("linear.nm_shift" in leaves) == (shift in ("learned", "static_channel"))
        weighted_sum(module, x, weights).backward()
        kept = module.prune(x)[0] != 0
        for name, leaf in {**leaves, "x": x}.items():
            direction = torch.rand(leaf.shape, generator=generator) * 2 - 1
            sums = []
            with torch.no_grad():
                for sign in (1, -1):
                    leaf += sign * EPS * direction
                    assert torch.equal(module.prune(x)[0] != 0, kept), name
                    sums.append(float(weighted_sum(module, x, weights)))
                    leaf -= sign * EPS * direction
            slope = (sums[0] - sums[1]) / (2 * EPS)
            expected = float((leaf.grad.double() * direction).sum())
            assert slope == pytest.approx(expected, rel=5e-3, abs=5e-3), name
            assert abs(expected) > 1e-3, name  # a gradient that is always 0 would agree with a constant


def test_a_shift_that_linears_share_gets_the_sum_of_their_gradients():
    x = separated_input()
    sums = []
    for shared in (False, True):
        pair = nn.ModuleDict({"a": linear(), "b": linear()})
        if shared:
            pair["b"].nm_shift = pair["a"].nm_shift
        with trainable(pair, dict(pair), ["shift"]) as leaves:
            assert len(leaves) == (1 if shared else 2)
            (pair["a"](x).square().sum() + pair["b"](x).sum()).backward()
            sums.append(sum(leaf.grad for leaf in leaves.values()))
    torch.testing.assert_close(*sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grouping", ["neighbours", "strided"])
@pytest.mark.parametrize("variance_correction", [False, True], ids=["plain", "var"])
@pytest.mark.parametrize("phase", ["both", "decode"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_the_linear_in_training_computes_the_same(shift, phase, variance_correction, grouping, dtype):
    module = linear(shift, variance_correction, phase, dtype, grouping)
    x = separated_input().to(dtype)[None]  # one sequence
    with torch.no_grad():
        expected = module(x)
        with trainable(module, {"linear": module}, EVERYTHING, weight_rank=RANK):
            found = module(x)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("shift", SHIFTS)
def test_offsets_and_weights_take_over_what_was_trained(shift):
    module, x = linear(shift), separated_input()
    before = module.weight.detach().clone()
    with trainable(module, {"linear": module}, EVERYTHING, weight_rank=RANK) as leaves:
        with torch.no_grad():
            for leaf in leaves.values():
                leaf += 0.01
            trained = module(x)
        B, A = leaves["linear.update_in"].detach(), leaves["linear.update_out"].detach()
    assert type(module) is NMSparseLinear
    assert not hasattr(module, "update")
    torch.testing.assert_close(module.weight.detach(), before + A @ B)
    torch.testing.assert_close(module(x).detach(), trained, rtol=1e-5, atol=1e-4)
    offset = module.nm_offset
    module.update_offset()
    assert offset is None or torch.equal(offset, module.nm_offset)


def test_an_update_of_zero_leaves_every_bit_of_a_weight():
    module = linear()
    with torch.no_grad():
        module.weight[0, 0] = -0.0
    with trainable(module, {"linear": module}, ["weight"]):
        pass
    assert torch.signbit(module.weight[0, 0])


def test_trained_weights_are_rounded_once():
    module = linear(dtype=torch.bfloat16)
    before = module.weight.detach().float()
    with trainable(module, {"linear": module}, ["weight"], weight_rank=RANK) as leaves:
        with torch.no_grad():
            leaves["linear.update_out"].fill_(0.1)
        B, A = leaves["linear.update_in"].detach(), leaves["linear.update_out"].detach()
    assert torch.equal(module.weight.detach(), (before + A @ B).bfloat16())


def train_and_fail(model, error):
    with trainable(model, model.nm_modules(), EVERYTHING) as leaves:
        assert not any(parameter.requires_grad for parameter in model.parameters())
        model(token_ids()).logits.sum().backward()
        with torch.no_grad():
            for leaf in leaves.values():
                leaf -= 0.1 * leaf.grad + 0.01
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_model_as_it_was(error):
    model = calibrated()
    model.model.norm.weight.requires_grad_(False)
    before = state(model)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(error):
        train_and_fail(model, error)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    assert not any(tensor.grad is not None for tensor in (*model.parameters(), *model.buffers()))
    assert not any(buffer.requires_grad for buffer in model.buffers())
    assert all(type(module) is NMSparseLinear for module in model.nm_modules().values())
    assert_equal(state(model), before)


def test_weights_that_are_nowhere_cannot_be_trained():
    here, away = linear(), linear()
    away.weight = nn.Parameter(away.weight.to("meta"))
    both = nn.ModuleDict({"here": here, "away": away})
    with pytest.raises(UserError, match="the weight of away must be in memory"), trainable(both, both, ["weight"]):
        pass
    assert type(here) is type(away) is NMSparseLinear
    assert here.weight.requires_grad
