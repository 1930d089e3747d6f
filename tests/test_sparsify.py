"""`sparsify` takes what is obvious, and says in one sentence what it does not take."""

import pytest
import torch
from transformers import LlamaModel, T5Config, T5ForConditionalGeneration

import nm_export
from nm_export.errors import UserError
from nm_export.recipe import Override
from tests.tiny_models import CONFIGS, dense_model, token_ids


def schemes(model):
    return model.config.sparsity["schemes"]


def test_the_same_model_in_every_way(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {source: some/model}\nsparsity: {pattern: 4:8, score: weight_norm}\n")
    section = nm_export.SparsitySection(pattern="4:8", score="weight_norm")
    recipe = nm_export.Recipe(model={"source": "some/model"}, sparsity=section)
    expected = schemes(nm_export.sparsify(dense_model(), pattern="4:8", score="weight_norm"))
    assert expected[0]["pattern"] == "4:8"
    for given in (section, recipe, path, str(path), {"pattern": "4:8", "score": "weight_norm"}):
        assert schemes(nm_export.sparsify(dense_model(), given)) == expected
    assert schemes(nm_export.sparsify(dense_model(), "4:8", score="weight_norm")) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"shift": "learned"},
        {"output_scale": True},
        {"output_bias": "learned"},
        {"overrides": [{"modules": "*.down_proj", "shift": "learned"}]},
        {"overrides": [{"modules": "*.down_proj", "output_scale": True}]},
        {"overrides": [Override(modules="*.down_proj", output_bias="learned")]},
    ],
)
def test_learned_parameters_need_no_recipe(fields):
    model, plain = nm_export.sparsify(dense_model(), **fields), nm_export.sparsify(dense_model())
    ids = token_ids()
    nm_export.calibrate(model)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits)


def test_a_recipe_that_is_run_trains_what_it_learns(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {source: some/model}\nsparsity: {shift: learned}\n")
    with pytest.raises(UserError, match="a learned shift that nothing trains"):
        nm_export.load_recipe(path)
    assert nm_export.load_recipe(path, runs=False).sparsity.shift == "learned"
    nm_export.sparsify(dense_model(), path)


MISTAKES = {
    "a typo": ((), {"patern": "8:16"}, "sparsify: unknown key patern; did you mean pattern?"),
    "a typo in a word": (
        (),
        {"score": "weight_nrm"},
        "score is 'weight_nrm'; it must be .*; did you mean weight_norm?",
    ),
    "a typo in an override": ((), {"overrides": [{"modules": "*", "shfit": "none"}]}, "did you mean shift?"),
    "a wrong type": ((), {"pattern": 816}, "sparsify: pattern is a single value"),
    "no targets": ((), {"targets": []}, "targets is empty; give at least one entry$"),
    "no pattern": (("8-16",), {}, "'8-16' is not a pattern.*or give the path of a recipe file"),
    "no file": (("nowhere.yaml",), {}, "nowhere.yaml: there is no such recipe file"),
    "two patterns": (("8:16",), {"pattern": "4:8"}, "two patterns"),
    "both": ((nm_export.SparsitySection(),), {"pattern": "4:8"}, "not both"),
    "a number": ((16,), {}, "not an int"),
    "an exponent of nothing": (
        ("8:16",),
        {"score": "amber", "score_exponent": 2},
        "score_exponent is of the score weight_norm",
    ),
    "no such module": (("8:16",), {"targets": "*.foo"}, 'sparsity.targets: "\\*.foo" matches no linear layer'),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_answered_as_in_a_recipe(what):
    given, fields, sentence = MISTAKES[what]
    with pytest.raises(UserError, match=sentence) as refused:
        nm_export.sparsify(dense_model(), *given, **fields)
    assert "\n" not in str(refused.value)


def test_models_that_it_cannot_do_with():
    t5 = T5Config(vocab_size=96, d_model=32, d_ff=64, num_layers=1, num_heads=2, d_kv=8)
    for model, sentence in (
        ("gpt2", r"in memory, not a str: load it with AutoModelForCausalLM\.from_pretrained"),
        (None, "in memory, not None"),
        (torch.nn.Linear(4, 4), "in memory, not a Linear"),
        (nm_export.sparsify(dense_model()), "sparse already; model.to_dense()"),
        (T5ForConditionalGeneration(t5), "T5ForConditionalGeneration is an encoder-decoder"),
        (LlamaModel(CONFIGS["llama"]()), "LlamaModel has no output layer"),
    ):
        with pytest.raises(UserError, match=sentence) as refused:
            nm_export.sparsify(model, "8:16")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("function", "section", "left_out"),
    [
        (nm_export.sparsify, nm_export.SparsitySection, ()),
        (nm_export.learn, nm_export.LearningSection, ("num_samples", "sequence_length")),
    ],
)
def test_the_docstring_explains_every_field(function, section, left_out):
    text = " ".join(function.__doc__.split())
    for name, field in section.model_fields.items():
        described = f"{name} (default " in text and " ".join(field.description.split()) in text
        assert described == (name not in left_out), name
    assert max(map(len, function.__doc__.splitlines())) <= 120


def test_print_shows_what_differs_from_the_defaults():
    model = nm_export.sparsify(dense_model(), "8:16", targets="*.down_proj")
    module = model.get_submodule("model.layers.0.mlp.down_proj")
    assert repr(module) == "NMSparseLinear(in_features=64, out_features=32, bias=False, 8:16)"
    settings = {
        "score": "weight_norm",
        "shift": "learned",
        "variance_correction": True,
        "output_scale": True,
        "output_bias": "learned",
        "residual_rank": 3,
        "grouping": "strided",
    }
    model = nm_export.sparsify(model.to_dense(), "4:8", targets="*.down_proj", **settings)
    model.set_sparsity(False)
    shown = repr(model.get_submodule("model.layers.0.mlp.down_proj"))
    for part in ("4:8", "score=weight_norm", "shift=learned", "grouping=strided", "variance_correction=True"):
        assert part in shown
    for part in ("output_scale=True", "output_bias", "residual_rank=3", "enabled=False"):
        assert part in shown
    assert "phase" not in shown
