"""A budget given to `sparsify` is spent by the first `calibrate`, as a recipe spends it, or nothing goes on."""

import copy

import pytest
import torch

import nm_export
from nm_export.calibration.budget import open_budget
from nm_export.errors import UserError
from tests.tiny_folder import tiny_recipe
from tests.tiny_models import dense_model, token_ids

SEQUENCES = token_ids(samples=5, length=24)
BUDGET = {"budget": 0.5, "budget_patterns": ["4:16", "8:16", "12:16"], "score": "weight_norm"}


def patterns(model):
    return {name: scheme["pattern"] for scheme in model.config.sparsity["schemes"] for name in scheme["modules"]}


def test_text_decides_what_is_pruned():
    model = nm_export.sparsify(dense_model(), "8:16", **BUDGET)
    assert len(patterns(model)) == 14
    assert set(patterns(model).values()) == {"8:16"}
    nm_export.calibrate(model, SEQUENCES)
    found = patterns(model)
    assert found.keys() == model.nm_modules().keys()
    assert set(found.values()) <= {"4:16", "8:16", "12:16"}
    assert len(found) < 14 or len(set(found.values())) > 1
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    macs = sum(linear.weight.numel() for name, linear in linears.items() if name != "lm_head")
    saved = sum(linears[name].weight.numel() * (1 - int(p.split(":")[0]) / 16) for name, p in found.items())
    assert saved >= 0.5 * 0.5 * macs * (1 - 1e-9)  # half of what 8:16 saves everywhere
    assert open_budget(model) is None
    nm_export.calibrate(model, SEQUENCES[:2])  # spent once
    assert patterns(model) == found
    assert any(not bool((module.nm_score == 1).all()) for module in model.nm_modules().values())


def test_it_is_spent_as_a_recipe_spends_it(tiny_source, tmp_path):
    section = nm_export.SparsitySection(**BUDGET)
    recipe = tiny_recipe(tiny_source, sparsity=section.model_dump(exclude_none=True, exclude_defaults=True))
    summary = nm_export.run(recipe, output_dir=tmp_path / "out", skip_onnx=True)
    expected, tokenizer, _ = nm_export.load_exported(summary.folder)
    from transformers import AutoModelForCausalLM

    model = nm_export.sparsify(AutoModelForCausalLM.from_pretrained(tiny_source).eval(), section)
    nm_export.calibrate(model, nm_export.token_sequences(tokenizer, recipe.calibration))
    assert patterns(model) == patterns(expected)
    found = model.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.state_dict().items())


def test_nothing_goes_on_before_it_is_spent(tmp_path):
    model = nm_export.sparsify(dense_model(), **BUDGET)
    for call in (
        lambda: nm_export.save(model, tmp_path / "out"),
        lambda: nm_export.export_onnx(model, tmp_path, tokenizer_dir=tmp_path),
        lambda: nm_export.learn(model, SEQUENCES, mode="blockwise", parameters=["weight"]),
        lambda: nm_export.verify(tmp_path, model, SEQUENCES),
        lambda: nm_export.trainable(model, ["weight"]).__enter__(),
    ):
        with pytest.raises(UserError, match="a budget that is not spent yet; calibrate it with text first"):
            call()
    with pytest.raises(UserError, match="text decides what is pruned"):
        nm_export.calibrate(model)


def test_copies_and_dense_models_know():
    model = nm_export.sparsify(dense_model(), **BUDGET)
    assert open_budget(copy.deepcopy(model)) is not None
    again = nm_export.sparsify(model.to_dense(), "8:16")
    assert open_budget(again) is None
    nm_export.calibrate(again)
    assert set(patterns(again).values()) == {"8:16"}


def test_a_budget_that_cannot_be_met_leaves_the_model_as_it_was():
    model = nm_export.sparsify(dense_model(), "8:16", budget=1.0, budget_patterns=["15:16"])
    before = patterns(model)
    with pytest.raises(UserError, match=r"sparsity\.budget asks for"):
        nm_export.calibrate(model, SEQUENCES)
    assert patterns(model) == before
    assert open_budget(model) is not None


def test_patterns_without_a_budget_are_refused():
    with pytest.raises(UserError, match="budget_patterns are what a budget chooses from"):
        nm_export.sparsify(dense_model(), budget_patterns=["4:16"])


def test_scores_of_the_callers_own_are_measured_too():
    model = nm_export.sparsify(dense_model(), "8:16", budget=0.5, score="custom:mine")
    nm_export.calibrate(model, SEQUENCES, scores=lambda weight, statistics: weight.norm(dim=0))
    assert 0 < len(patterns(model)) < 14
    for module in model.nm_modules().values():
        assert not bool((module.nm_score == 1).all())


def test_a_budget_has_nothing_to_choose_among_pruned_weights():
    model = nm_export.sparsify(dense_model(), "8:16", budget=0.5, prune="weights")
    with pytest.raises(UserError, match="all of these have prune: weights; leave budget out"):
        nm_export.calibrate(model, SEQUENCES)
    assert open_budget(model) is not None


def test_pruned_weights_are_dense_again_where_the_budget_leaves_them_and_after_all():
    dense = dense_model()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    overrides = [{"modules": "*.up_proj", "prune": "weights"}]
    model = nm_export.sparsify(dense, "8:16", budget=0.2, overrides=overrides)
    nm_export.calibrate(model, SEQUENCES)
    pruned = model.get_submodule("model.layers.0.mlp.up_proj").weight
    assert (pruned == 0).sum() == pruned.numel() // 2
    found = model.to_dense().state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in before.items())
