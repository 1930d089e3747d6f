"""Scores that a caller computes: under their own name, one for each input, kept, exported and read back."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import nm_export
from nm_export.calibration.custom_scores import CustomScores
from nm_export.errors import UserError
from tests.tiny_models import dense_model, token_ids

SEQUENCES = token_ids(samples=6, length=16)
DOWN = "model.layers.0.mlp.down_proj"


def vector(channels, seed=0):
    return torch.rand(channels, generator=torch.Generator().manual_seed(seed)) + 0.1


def sparse(score="custom:mine", **sparsity):
    return nm_export.sparsify(dense_model(), score=score, **sparsity)


def scores(model):
    return {name: module.nm_score.clone() for name, module in model.nm_modules().items()}


def test_vectors_by_name_and_wildcard():
    model = sparse()
    named, others = vector(64, 1), vector(64, 2)
    nm_export.calibrate(model, scores={DOWN: named, "*": vector(32), "*.down_proj": others})
    found = scores(model)
    assert torch.equal(found[DOWN], named)
    assert torch.equal(found["model.layers.1.mlp.down_proj"], others)
    assert torch.equal(found["model.layers.1.self_attn.q_proj"], vector(32))


def test_a_function_of_weights_and_statistics():
    model = sparse(targets=["*.q_proj", "*.k_proj", "*.down_proj"])
    seen = []

    def score(weight, statistics):
        seen.append(tuple(weight.shape))
        assert statistics.mean_median.shape == (1,)
        assert statistics.channel_mean.shape == (weight.shape[1],)
        return weight.norm(dim=0) * statistics.channel_norm + statistics.channel_maximum

    nm_export.calibrate(model, SEQUENCES, scores=score)
    assert seen == [(48, 32), (32, 64)] * 2  # q and k one below the other
    q, k = (model.get_submodule(f"model.layers.0.self_attn.{name}_proj") for name in "qk")
    assert torch.equal(q.nm_score, k.nm_score)
    inputs = []
    hook = q.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad(), model.dense():
        model(SEQUENCES)
    hook.remove()
    x = inputs[0].flatten(0, 1)
    expected = torch.cat([q.weight, k.weight]).norm(dim=0) * x.norm(dim=0) + x.abs().amax(dim=0)
    torch.testing.assert_close(q.nm_score, expected, rtol=1e-5, atol=1e-6)


def test_a_function_of_weights_needs_no_text():
    model = sparse()
    nm_export.calibrate(model, scores={"*": lambda weight, statistics: weight.abs().sum(dim=0)})
    module = model.get_submodule(DOWN)
    torch.testing.assert_close(module.nm_score, module.weight.abs().sum(dim=0))


def test_scores_are_kept_by_later_calls():
    model = sparse(shift="static_channel", output_bias="calibrated")
    nm_export.calibrate(model, SEQUENCES, scores={"*": vector(32), "*.down_proj": vector(64)})
    before = scores(model)
    nm_export.calibrate(model, SEQUENCES[:3])
    after = scores(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_score_decides_what_is_kept_and_biases_repair_what_it_leaves():
    model = sparse(pattern="1:16", targets=["*.down_proj"])
    chosen = torch.full((64,), 1e-6)
    chosen[::16] = 1e6
    nm_export.calibrate(model, scores={"*": chosen})
    values, _ = model.get_submodule(DOWN).prune(torch.randn(1, 5, 64) + 3)
    assert (values.nonzero()[:, -1] % 16 == 0).all()


REFUSED = {
    "negative": ({"*": lambda w, s: -w.norm(dim=0)}, "must not be negative"),
    "zero": ({"*": lambda w, s: torch.zeros(w.shape[1])}, "0 in every channel"),
    "NaN": ({"*": lambda w, s: w.norm(dim=0) * torch.nan}, "NaN or infinite"),
    "infinite in float32": ({"*": lambda w, s: w.double().norm(dim=0) * 1e60}, "NaN or infinite"),
    "another shape": ({"*.down_proj": vector(64), "*": vector(31)}, r"the shape \[31\]; its input has 32 channels"),
    "no numbers": ({"*": "norm"}, "a str, not a vector"),
    "nothing about some": ({"*.down_proj": vector(64)}, "say nothing about model.layers.0.self_attn.q_proj"),
    "a typo": (
        {"*": vector(32), "model.layers.0.mlp.down_prj": vector(64)},
        "did you mean model.layers.0.mlp.down_proj?",
    ),
    "two for one input": (
        {"*.down_proj": vector(64), "*": vector(32), "*.k_proj": vector(32, 1)},
        "read one input and keep the same of it",
    ),
    "no mapping": (vector(32), "a function or a mapping"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_score_is_refused(what):
    given, sentence = REFUSED[what]
    with pytest.raises(UserError, match=sentence):
        nm_export.calibrate(sparse(), scores=given)


def test_a_score_that_nobody_gave_is_refused():
    with pytest.raises(UserError, match=r"has the score custom:mine; give its values: calibrate\(model, scores=...\)"):
        nm_export.calibrate(sparse())
    with pytest.raises(UserError, match='no module has one; sparsify with score="custom:NAME"'):
        nm_export.calibrate(sparse("weight_norm"), scores={"*": vector(32)})


@pytest.mark.parametrize("name", ["custom:", "custom:two words", "custom:ä", "custom:" + "x" * 65, "custom:a/b"])
def test_names_are_letters_digits_and_few_signs(name):
    with pytest.raises(UserError, match="custom:NAME"):
        sparse(name)
    schemes = [{"pattern": "8:16", "score": name, "modules": [DOWN]}]
    with pytest.raises(ValueError, match="score is not one of"):
        nm_export.NMSparseConfig(dense_model().config, {"version": 1, "schemes": schemes})


def test_different_names_do_not_share_a_selection():
    model = sparse("custom:a", overrides=[{"modules": "*.k_proj", "score": "custom:b.2"}])
    groups = model.config.sparsity["input_groups"]
    assert ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"] in groups
    assert ["model.layers.0.self_attn.k_proj"] in groups
    assert "score=custom:b.2" in str(model.get_submodule("model.layers.0.self_attn.k_proj"))


def test_no_recipe_that_is_run_has_one(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {source: some/model}\nsparsity: {score: 'custom:mine'}\n")
    with pytest.raises(UserError, match="the score custom:mine, which no recipe can compute"):
        nm_export.load_recipe(path)
    assert nm_export.load_recipe(path, runs=False).sparsity.score == "custom:mine"


def test_it_is_saved_exported_verified_and_reloaded_under_its_name(tmp_path, tiny_source):
    model = AutoModelForCausalLM.from_pretrained(tiny_source).eval()
    model = nm_export.sparsify(model, "8:16", score="custom:my-score.1")
    nm_export.calibrate(model, SEQUENCES, scores=lambda weight, statistics: statistics.channel_norm)
    folder = nm_export.save(model, tmp_path / "mine")
    nm_export.export_onnx(model, folder, tokenizer_dir=tiny_source)
    report = nm_export.verify(folder, model, SEQUENCES)
    assert all(check.kept_channels_equal for check in report.modules.values())
    assert len(report.modules) == 3
    config = json.loads((folder / "config.json").read_text())
    assert {scheme["score"] for scheme in config["sparsity"]["schemes"]} == {"custom:my-score.1"}
    assert "custom:my-score.1" in (folder / "README.md").read_text()
    program = (
        "import sys; sys.modules['nm_export'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        f"print(model.get_submodule({DOWN!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "score=custom:my-score.1" in done.stdout


def test_needs_of_a_vector_and_of_a_function():
    found = CustomScores({"a": vector(4), "b": lambda *_: None}, [["a"], ["b"]])
    assert not found.needs("a")
    assert found.needs("b") == {"median_sum", "square_sum", "maximum"}
