"""Static N:M sparsity of weights against a plain statement of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from nm_export import NMSparseForCausalLM, UserError, sparsify
from nm_export.batches import read_tokens
from nm_export.calibration import weight_pruning
from nm_export.calibration.budget import choose_patterns
from nm_export.calibration.calibrate import calibrate
from nm_export.calibration.weight_pruning import prune_weight_
from nm_export.plan import make_plan
from tests.tiny_models import dense_model, recipe, sparse_model, token_ids


def expected(weight, n, m):
    rows = [list(row) for row in weight.tolist()]
    for row in rows:
        for first in range(0, len(row), m):
            group = range(first, first + m)
            kept = sorted(group, key=lambda channel: (-abs(row[channel]), channel))[:n]
            for channel in set(group) - set(kept):
                row[channel] = 0.0
    return torch.tensor(rows, dtype=weight.dtype)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 99),
    pattern=st.sampled_from([(1, 2), (2, 4), (8, 16), (1, 1), (3, 3), (5, 8)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    elements=st.sampled_from([1, 100, 1 << 22]),
)
def test_the_smallest_of_each_group_are_zeroed(seed, pattern, dtype, elements):
    n, m = pattern
    # small whole numbers: full of ties
    weight = torch.randint(-3, 4, (6, 3 * m), generator=torch.Generator().manual_seed(seed)).to(dtype)
    want, storage = expected(weight, n, m), weight.data_ptr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_pruning, "_ELEMENTS", elements)
        prune_weight_(weight, n, m)
    assert torch.equal(weight, want)
    assert weight.data_ptr() == storage


def test_a_parameter_is_pruned_in_place_and_twice_is_once():
    linear = torch.nn.Linear(32, 5)
    prune_weight_(linear.weight, 8, 16)
    once = linear.weight.detach().clone()
    assert ((once == 0).sum(dim=1) == 16).all()
    prune_weight_(linear.weight, 8, 16)
    assert torch.equal(linear.weight, once)
    assert linear.weight.requires_grad


def same(model, weights):
    return all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items() if name in weights)


def test_a_loop_over_schemes_gets_its_dense_model_back():
    model = dense_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for scheme in ({"prune": "weights"}, {"overrides": [{"modules": "*.up_proj", "prune": "weights"}]}):
        sparse = sparsify(model, pattern="8:16", **scheme)
        weight = sparse.model.layers[0].mlp.up_proj.weight
        assert (weight == 0).sum() == weight.numel() // 2  # at once
        calibrate(sparse)
        assert (weight == 0).sum() == weight.numel() // 2
        model = sparse.to_dense()
        assert type(model) is LlamaForCausalLM
        assert same(model, before)


def test_statistics_are_those_of_the_dense_model():
    scheme = {"pattern": "8:16", "score": "clact"}
    found = []
    for overrides in ([], [{"modules": "model.layers.0.*", "prune": "weights", "score": "magnitude"}]):
        model = sparsify(dense_model(), **scheme, overrides=overrides)
        calibrate(model, token_ids(4, 8))
        found.append(model.nm_modules()["model.layers.1.mlp.down_proj"].nm_score)
    assert torch.equal(*found)


def test_weights_are_pruned_again_when_calibration_fails():
    overrides = [{"modules": "*.up_proj", "prune": "weights", "shift": "none"}]
    model = sparsify(dense_model(), pattern="8:16", shift="static_channel", overrides=overrides)
    model.model.layers[0].mlp.gate_proj.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        calibrate(model, token_ids(4, 8))
    weight = model.model.layers[0].mlp.up_proj.weight
    assert (weight == 0).sum() == weight.numel() // 2


def test_without_copies_the_dense_model_is_gone(tmp_path):
    model = sparse_model(prune="weights")  # as a recipe's run has it: no memory for copies
    calibrate(model)
    model.save_pretrained(tmp_path)
    for pruned in (model, NMSparseForCausalLM.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=r"q_proj \(14 linears\) are gone: prune: weights.*load the base model"):
            pruned.to_dense()


def test_a_budget_starts_from_the_dense_model_again():
    made = recipe(budget=0.5, overrides=[{"modules": "*.up_proj", "prune": "weights"}])
    model = dense_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = read_tokens(token_ids(4, 8), "test")
    choose_patterns(model, make_plan(model, made), made.sparsity, tokens, lambda sparse: calibrate(sparse, tokens))
    assert same(model, before)
