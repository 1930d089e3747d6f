"""A folder of `nm_export.save` is one that every command takes."""

import json
import re
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import nm_export
from nm_export.cli import app
from nm_export.errors import UserError
from nm_export.publishing.saved import plan_of, recipe_of
from tests.tiny_models import sparse_model, token_ids

SEQUENCES = torch.randint(3, 96, (6, 24), generator=torch.Generator().manual_seed(3))
SPARSITY = {
    "score": "custom:mine",
    "shift": "learned",
    "overrides": [
        {"modules": "*.down_proj", "pattern": "4:8", "score": "weight_norm", "score_exponent": 0.5, "shift": "none"},
        {"modules": "*.k_proj", "output_bias": "calibrated", "residual_rank": 2},
        {"modules": "*.layers.1.*", "phase": "both", "variance_correction": True},
        {"modules": "*.o_proj", "dense": True},
    ],
}


@pytest.fixture(scope="module")
def made(tiny_source, tmp_path_factory):
    """A model, and the folder that it was saved to, exported and verified."""
    model = AutoModelForCausalLM.from_pretrained(tiny_source).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_source)
    model = nm_export.sparsify(model, "8:16", **SPARSITY)
    nm_export.calibrate(model, SEQUENCES, scores=lambda weight, statistics: statistics.channel_norm)
    nm_export.learn(model, SEQUENCES, mode="end_to_end", parameters=["shift"], held_out_samples=2)
    folder = nm_export.save(model, str(tmp_path_factory.mktemp("made") / "mine"), tokenizer)
    nm_export.export_onnx(model, str(folder), tokenizer_dir=str(folder))
    nm_export.verify(str(folder), model, SEQUENCES)
    return model, folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(made[1], tmp_path / "mine")


def command(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def card(folder):
    return (folder / "README.md").read_text()


def test_the_recipe_resolves_to_the_schemes_module_by_module(made):
    model, folder = made
    _, _, recipe = nm_export.load_exported(folder)
    schemes = {name: scheme for scheme in model.config.sparsity["schemes"] for name in scheme["modules"]}
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(schemes) == 12
    for name in linears:
        found = recipe.for_module(name)
        expected = schemes.get(name)
        assert (found and found.model_dump()) == (expected and {k: expected[k] for k in expected if k != "modules"})


def test_names_with_signs_of_wildcards_match_themselves_only():
    model = sparse_model(targets="*.down_proj")
    model.config.sparsity["schemes"][0]["modules"] = ["model.layers[0].*.proj?"]
    section = recipe_of(model).sparsity
    assert section.for_module("model.layers[0].*.proj?")
    assert not section.for_module("model.layers0.x.proj1")


def test_macs_are_those_of_the_plan(made):
    model, folder = made
    macs = json.loads((folder / "nm_export.json").read_text())["linear_macs"]
    plan = plan_of(model)
    assert macs["pruned_linears"] == 12
    assert macs["linears"] == 14
    assert macs["saved_share"] == pytest.approx(plan.pruned_share / 2)
    assert macs["added_share"] > 0


@pytest.mark.parametrize("backend", ["torch", "onnx", "genai"])
def test_generate(folder, backend):
    if backend == "genai":
        pytest.importorskip("onnxruntime_genai")
    assert command("generate", folder, "hello", "--max-new-tokens", 4, "--backend", backend).strip()


def test_verify_and_bench(folder):
    command("verify", folder)
    pytest.importorskip("onnxruntime_genai")
    measured = folder.parent / "bench.json"
    command("bench", folder, "--prompt", 8, "--new-tokens", 2, "--repeats", 1, "--json", measured)
    command("card", folder, "--bench", measured)
    assert "tokens per second" in card(folder)


def test_evaluate_and_card(folder):
    measured = folder.parent / "evaluation.json"
    command("evaluate", folder, "--window", 32, "--windows", 2, "--json", measured)
    assert "Quality was not measured" in card(folder)
    command("card", folder, "--evaluation", measured)
    assert "builtin:python-docs" in card(folder)


def test_convert_and_back(folder):
    small, full = folder.parent / "small", folder.parent / "full"
    assert "bit-equal" in command("convert", folder, small, "--weights", "reference")
    assert "bit-equal" in command("convert", small, full, "--weights", "full")


def test_publish(folder, hub):
    command("publish", folder, "--repo-id", "user/mine")
    assert "custom:mine" in card(folder)


def test_the_card_says_what_is_known_and_no_more(made):
    text = card(made[1])
    for word in ("custom:mine", "made in Python from a model in memory", "ONNX Runtime, compiled operators"):
        assert word in text
    for word in (
        "sequences of 512 tokens",
        "enabled` was off",
        "bit for bit",
        "not verified after",
        "nm-export recipe.yaml",
    ):
        assert word not in text
    assert not re.search(r"base_model: ", text)  # nothing says that the folder's name is one of the Hub


def test_nothing_is_published_before_it_is_verified(made, tmp_path, hub):
    model, _ = made
    folder = nm_export.save(model, tmp_path / "new", AutoTokenizer.from_pretrained(made[1], trust_remote_code=True))
    assert "**This model was not verified after it was written.**" in card(folder)
    result = CliRunner().invoke(app, ["publish", str(folder), "--repo-id", "user/mine"])
    assert result.exit_code == 2
    nm_export.verify(folder, model, SEQUENCES, onnx=False)
    assert "not verified" not in card(folder)
    nm_export.export_onnx(model, folder, tokenizer_dir=folder)  # what was verified is another folder now
    assert json.loads((folder / "measurements.json").read_text())["verification"] is None
    assert "not verified" in card(folder)
    result = CliRunner().invoke(app, ["publish", str(folder), "--repo-id", "user/mine"])
    assert result.exit_code == 2


def test_a_recipes_folder_stays_as_it_is(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    nm_export.verify(folder, nm_export.load_exported(folder)[0], SEQUENCES)
    assert {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    } == {path: content for path, content in before.items() if "__pycache__" not in path.parts}


def test_its_recipe_says_what_it_is(made):
    text = (made[1] / "recipe.yaml").read_text()
    assert text.startswith("# Describes a model that was made in Python")
    assert set(yaml.safe_load(text)) == {"model", "sparsity", "evaluation"}
    with pytest.raises(UserError, match="which no recipe can compute"):
        nm_export.load_recipe(made[1] / "recipe.yaml")


def test_what_was_loaded_from_an_export_keeps_its_origin(exported, tmp_path):
    model, tokenizer, _ = nm_export.load_exported(exported)
    folder = nm_export.save(model, tmp_path / "again", tokenizer)
    origin = json.loads((exported / "nm_export.json").read_text())["base_model"]
    assert json.loads((folder / "nm_export.json").read_text())["base_model"] == origin


def test_commands_that_need_a_tokenizer_say_so(made, tmp_path):
    folder = nm_export.save(made[0], tmp_path / "bare")
    result = CliRunner().invoke(app, ["generate", str(folder), "hello"])
    assert result.exit_code == 2
    assert "the tokenizer of" in result.output
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"folder": 5}, "save takes the path of a folder, not an int"),
        ({"tokenizer": "gpt2"}, "save takes a tokenizer of transformers, not a str"),
        ({"max_shard_size": "big"}, "save: max_shard_size: 'big' is not a size"),
        ({"model": "model"}, "save takes a sparse model in memory, not a str"),
    ],
)
def test_wrong_arguments_are_refused(arguments, sentence, made, tmp_path):
    with pytest.raises(UserError, match=sentence):
        nm_export.save(**{"model": made[0], "folder": tmp_path / "out", **arguments})


def test_parameters_that_are_not_finite_are_neither_saved_nor_exported(tmp_path, tiny_source):
    model = sparse_model(score="weight_norm")
    next(iter(model.nm_modules().values())).nm_score[3] = torch.nan
    with pytest.raises(UserError, match="nm_score holds NaN or infinite values"):
        nm_export.save(model, tmp_path / "out")
    with pytest.raises(UserError, match="nm_score holds NaN or infinite values"):
        nm_export.export_onnx(model, tmp_path, tokenizer_dir=tiny_source)


def test_sequences_of_several_lengths_verify(made, folder):
    rows = [token_ids(1, length, length)[0].tolist() for length in (20, 7, 13)]
    report = nm_export.verify(folder, made[0], rows, onnx=False)
    assert report.reloaded_logits_equal
