"""A dry run says what it would do and what it could not check, and touches nothing."""

import io
import os
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from transformers import LlamaConfig, MistralConfig, StableLmConfig

from nm_export import pipeline
from nm_export.dry_run import dry_run
from nm_export.errors import UserError
from nm_export.estimates.costs import PROCESS, costs
from nm_export.estimates.rates import Rates
from nm_export.estimates.shapes import find_shapes
from nm_export.preparation import learning_text
from nm_export.recipe import Recipe, load_recipe
from tests.conftest import MIXED
from tests.pipeline.test_mistakes import Workplace
from tests.tiny_folder import SIZES, tiny_recipe, write_tiny_folder

LEARNING = {"mode": "blockwise", "parameters": ["shift"], "num_samples": 4, "sequence_length": 32}
RECIPES = Path(__file__).parents[2] / "recipes"


def text_of(result):
    console = Console(width=300, file=io.StringIO())
    console.print(result)
    return console.file.getvalue()


def test_shapes_and_sizes(tiny_source, tmp_path):
    result = dry_run(tiny_recipe(tiny_source, sparsity=MIXED), output_dir=tmp_path / "out")
    rows = [" ".join(line.split()) for line in text_of(result).splitlines()]
    share = 100 / (2 * (2 * 3 + 2 * 1 + 3 * 6))  # of a product of 48 x 16, in a model of two layers
    for row in (
        f"2 q_proj 48 x 48 8:16 weight_norm static_channel as it is both {6 * share:.1f}%",
        f"2 k_proj 48 x 16 2:4 weight_norm dynamic_mean corrected both {2 * share:.1f}%",
        f"2 v_proj 48 x 16 3:8 magnitude dynamic_median as it is both {2 * share:.1f}%",
        f"1 o_proj 48 x 48 dense {3 * share:.1f}%",
        f"1 down_proj 96 x 48 8:16 weight_norm^2 static_scalar as it is both {6 * share:.1f}%",
        f"1 down_proj 96 x 48 8:16 weight_norm^2 static_scalar as it is prefill {6 * share:.1f}%",
    ):
        assert row in rows
    assert "13 of 14 decoder linears are pruned" in text_of(result)
    assert (result.shapes.dtype, result.unchecked) == (torch.float32, ())
    assert not (tmp_path / "out").exists()


def test_bytes_are_those_of_a_run(exported, tiny_source, tmp_path):
    """To the byte in safetensors; near in the graph, where alignment and a few constants come on top."""
    result = dry_run(tiny_recipe(tiny_source, sparsity=MIXED), output_dir=tmp_path / "out")
    with safe_open(exported / "model.safetensors", "pt") as file:
        written = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert {name: tensor.shape for name, tensor in result.shapes.tensors.items()} == written
    assert result.estimate.disk.safetensors == (exported / "model.safetensors").stat().st_size
    data = (exported / "onnx" / "model.onnx.data").stat().st_size
    assert 0.9 * data <= result.estimate.disk.onnx <= data


def test_positions_that_no_graph_has_are_refused_before_a_weight_is_loaded(tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    source = write_tiny_folder(tmp_path / "source", LlamaConfig(**SIZES, head_dim=16, rope_parameters=rope))
    (source / "model.safetensors").write_bytes(b"")
    recipe = tiny_recipe(source)
    with pytest.raises(UserError, match="RoPE type dynamic cannot be exported to ONNX"):
        dry_run(recipe, output_dir=tmp_path / "out")
    with pytest.raises(UserError, match="RoPE type dynamic cannot be exported to ONNX"):
        pipeline.run(recipe, output_dir=tmp_path / "out")
    assert dry_run(recipe, output_dir=tmp_path / "out", skip_onnx=True).shapes


def test_bytes_of_tied_bfloat16(tmp_path):
    source = write_tiny_folder(tmp_path / "source", LlamaConfig(**SIZES, tie_word_embeddings=True, dtype="bfloat16"))
    recipe = tiny_recipe(
        source,
        model={"dtype": "bfloat16"},
        sparsity={"score": "weight_norm", "output_bias": "calibrated", "residual_rank": 2},
        verify={"enabled": False},
        evaluation={"enabled": False},
    )
    pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True)
    result = dry_run(recipe, output_dir=tmp_path / "other", skip_onnx=True)
    assert result.shapes.tied
    assert result.estimate.disk.safetensors == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert set(result.shapes.bytes_by_dtype()) == {"BF16", "F32"}


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_bytes_of_quantized_graphs(precision, tiny_source, tmp_path):
    recipe = tiny_recipe(
        tiny_source,
        onnx={"precision": precision, "block_size": 16},
        verify={"enabled": False},
        evaluation={"enabled": False},
    )
    pipeline.run(recipe, output_dir=tmp_path / "out")
    data = (tmp_path / "out" / "onnx" / "model.onnx.data").stat().st_size
    assert dry_run(recipe, output_dir=tmp_path / "other").estimate.disk.onnx == pytest.approx(data, rel=0.25)


def test_every_module_is_listed_when_asked_for(tiny_source, tmp_path):
    recipe = tiny_recipe(tiny_source, sparsity=MIXED)
    text = text_of(dry_run(recipe, output_dir=tmp_path / "out", every_module=True))
    assert "model.layers.1.mlp.down_proj" in text
    assert "model.layers" not in text_of(dry_run(recipe, output_dir=tmp_path / "out"))


def test_what_a_run_would_take(tiny_source, tmp_path):
    recipe = tiny_recipe(tiny_source, sparsity={"budget": 0.5, "shift": "learned"}, learning=LEARNING)
    estimate = dry_run(recipe, output_dir=tmp_path / "out").estimate
    stages = [
        "load",
        "evaluate_dense",
        "allocate",
        "calibrate",
        "learn",
        "write",
        "onnx",
        "verify",
        "evaluate",
        "layers",
    ]
    assert [cost.stage for cost in estimate.costs] == stages
    assert all(cost.seconds > 0 and cost.memory > 0 for cost in estimate.costs)
    twice = tiny_recipe(tiny_source, sparsity={"budget": 0.5, "shift": "learned"}, learning={**LEARNING, "epochs": 2})
    more = costs(twice, find_shapes(twice), estimate.rates, with_onnx=True)
    assert more[4].seconds == 2 * estimate.costs[4].seconds
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_what_a_run_cannot_do_without(tiny_source):
    rates = Rates(1e9, 1e9, 1e9, 1e9)

    def held(sparsity=MIXED, **sections):
        recipe = tiny_recipe(tiny_source, sparsity=sparsity, evaluation={"enabled": False}, **sections)
        shapes = find_shapes(recipe)
        return shapes, {cost.stage: cost.held for cost in costs(recipe, shapes, rates, with_onnx=True)}

    shapes, mapped = held()
    assert mapped["load"] == mapped["write"] == mapped["onnx"] == PROCESS  # all of it, the weights of the graph too
    converted = held(model={"source": str(tiny_source), "dtype": "float32"})[1]
    assert converted["load"] == PROCESS + shapes.weight_bytes
    rewritten = sum(linear.macs for linear in shapes.plan.linears) * shapes.dtype.itemsize
    assert held({"prune": "weights"})[1]["load"] == PROCESS + rewritten
    generic = held(onnx={"exporter": "generic"})[1]
    assert generic["onnx"] == PROCESS + shapes.onnx_bytes(tiny_recipe(tiny_source).onnx)


def test_needs_the_configuration_only(tiny_source, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((tiny_source / "config.json").read_text())
    assert dry_run(tiny_recipe(tmp_path / "model")).shapes.parameters > 0


@pytest.mark.parametrize(
    ("config", "exporter", "named"),
    [
        (LlamaConfig, "auto", "the graph builder of onnxruntime-genai"),
        (LlamaConfig, "generic", "the exporter of transformers"),
        (StableLmConfig, "auto", "the exporter of transformers"),
    ],
)
def test_names_the_exporter(config, exporter, named, tmp_path):
    config(**SIZES, architectures=[config.__name__.replace("Config", "ForCausalLM")]).save_pretrained(
        tmp_path / "model"
    )
    result = dry_run(tiny_recipe(tmp_path / "model", onnx={"exporter": exporter}), output_dir=tmp_path / "out")
    assert any(f"/onnx with {named}, weights of fp32" in step for step in result.steps)


def test_refuses_what_a_run_would_refuse(tiny_source, tmp_path):
    with pytest.raises(UserError, match="M = 32"):
        dry_run(tiny_recipe(tiny_source, sparsity={"pattern": "8:32"}), output_dir=tmp_path / "out")
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file"):
        dry_run(tiny_recipe(tiny_source), output_dir=tmp_path / "out")


def test_texts_that_are_at_hand_are_counted(tiny_source, tmp_path):
    """What a run would refuse after loading, in the same words."""
    (tmp_path / "short.txt").write_text("short " * 20)
    short, missing = str(tmp_path / "short.txt"), str(tmp_path / "missing.txt")
    too_many = {"calibration": {"num_samples": 100_000}}
    learning = {"sparsity": {"output_scale": True}, "learning": {**LEARNING, "parameters": ["scale"]}}
    learning["learning"]["num_samples"] = 100_000
    for sections, message in (
        ({"calibration": {"dataset": missing}}, r"there is no file .*missing\.txt"),
        ({"calibration": {"dataset": short}}, r"calibration: .*short\.txt \(split train\) has [\d,]+ tokens, but 6"),
        ({"evaluation": {"dataset": short, "split": "all"}}, r"evaluation: .* lower evaluation\.num_samples"),
        (too_many, r"builtin:python-docs \(split train\) has [\d,]+ tokens, but 100,000 sequences"),
        (learning, r"learning: builtin.* but 100,008 sequences of 32 need .*; lower learning\.num_samples"),
    ):
        recipe = tiny_recipe(tiny_source, **sections)
        with pytest.raises(UserError, match=message) as said:
            dry_run(recipe, output_dir=tmp_path / "out")
        with pytest.raises(UserError) as run_says:
            pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True)
        assert str(run_says.value) == str(said.value)


def test_what_could_not_be_counted_is_said(tiny_source, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((tiny_source / "config.json").read_text())
    [calibration, evaluation] = dry_run(tiny_recipe(tmp_path / "model")).unchecked
    assert calibration.startswith(
        "whether builtin:python-docs (train) is long enough for calibration: the tokenizer of"
    )
    assert evaluation.startswith("whether builtin:python-docs (validation) is long enough for evaluation: ")
    on_the_hub = tiny_recipe(tiny_source, calibration={"dataset": "some/text"})
    assert dry_run(on_the_hub, output_dir=tmp_path / "out").unchecked == tuple(
        f"whether some/text ({split}) is long enough for {section}: a dry run fetches no text"
        for split, section in (("train", "calibration"), ("validation", "evaluation"))
    )


def test_the_built_in_text_feeds_the_defaults_of_learning(tiny_source, tmp_path):
    recipe = Recipe(
        model={"source": str(tiny_source)}, sparsity={"output_scale": True}, learning={"mode": "end_to_end"}
    )
    calibrates = recipe.calibration.num_samples * recipe.calibration.sequence_length
    text = learning_text(recipe)
    assert text.num_samples * text.sequence_length <= calibrates
    assert dry_run(recipe, output_dir=tmp_path / "out").unchecked == ()


def test_the_benchmark_is_estimated(tiny_source, tmp_path):
    recipe = tiny_recipe(tiny_source, benchmark={"enabled": True})
    result = dry_run(recipe, output_dir=tmp_path / "out")
    assert result.estimate.costs[-1].stage == "benchmark"
    assert result.estimate.costs[-1].seconds > 0
    short = tiny_recipe(tiny_source, benchmark={"enabled": True, "repeats": 1})
    again = costs(short, find_shapes(short), result.estimate.rates, with_onnx=True)
    assert again[-1].seconds < result.estimate.costs[-1].seconds
    assert costs(short, find_shapes(short), result.estimate.rates, with_onnx=False)[-1].stage == "layers"


@pytest.mark.parametrize("offline", [True, False])
def test_mistral_without_network(offline, tmp_path):
    workplace = Workplace(tmp_path, tmp_path)
    if not offline:
        workplace.block_network()
    (tmp_path / "recipe.yaml").write_text((RECIPES / "mistral_8of16.yaml").read_text())
    before = os.listdir(tmp_path)  # noqa: PTH208
    result = workplace.run("--dry-run", "--push-to-hub")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    words = " ".join(result.stdout.split())
    for part in (
        "load mistralai/Mistral-7B-v0.3",
        "calibrate the matching linears at 8:16 on 128 x 2048 tokens of Salesforce/wikitext",
        "measure dense and sparse perplexity on 32 x 2048 tokens of Salesforce/wikitext (test)",
        "publish the folder as Mistral-7B-v0.3-8of16 (public) on the Hugging Face Hub",
        "could not check",
        "which modules the recipe matches, and whether M divides their inputs",
        "whether you are logged in",
    ):
        assert part in words, result.stdout
    assert sorted({*os.listdir(tmp_path)} - {"hf"}) == sorted(before)  # noqa: PTH208


def test_what_publishing_would_show(tiny_source, tmp_path):
    shown = [
        step
        for source in (tiny_source, "some/model")
        for step in dry_run(tiny_recipe(source), output_dir=tmp_path / "out", push_to_hub=True).steps
        if "where files lie" in step
    ]
    assert shown == [f"show there where files lie here: model.source: {tiny_source} (relative paths would not)"]


def test_mistral_as_the_recipe_means_it(tmp_path):
    """With the published configuration in a folder, the shipped recipe resolves to the shares that it names."""
    MistralConfig(
        vocab_size=32768,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        dtype="bfloat16",
    ).save_pretrained(tmp_path)
    result = dry_run(load_recipe(RECIPES / "mistral_8of16.yaml", [f"model.source={tmp_path}"]))
    assert (len(result.plan.pruned), len(result.plan.linears)) == (4 * 32, 7 * 32)
    assert f"{result.plan.pruned_share:.0%}" == "58%"
    assert result.shapes.dtype == torch.bfloat16
    assert result.shapes.parameters == pytest.approx(7.25e9, rel=0.01)


@pytest.mark.parametrize(
    ("options", "verify", "sentence"),
    [
        ({"repo_id": "a/b/c"}, {}, r"repo_id \(--repo-id\) is about publishing; give push_to_hub"),
        ({"private": True}, {}, r"private \(--private\) is about publishing; give push_to_hub"),
        ({"push_to_hub": True}, {"enabled": False}, "nothing is published unverified"),
    ],
)
def test_what_a_run_would_not_publish_is_refused_by_both(tiny_source, tmp_path, options, verify, sentence):
    recipe = tiny_recipe(tiny_source, verify=verify)
    for command in (dry_run, pipeline.run):
        with pytest.raises(UserError, match=sentence):
            command(recipe, output_dir=tmp_path / "out", **options)
