"""`publish.weights: reference` through the pipeline, and one form made from the other."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig
from typer.testing import CliRunner

from nm_export import load_exported, pipeline
from nm_export.cli import app
from nm_export.dry_run import dry_run
from nm_export.errors import NMExportError, UserError
from nm_export.publishing import base_weights
from nm_export.publishing.hub import check_publishable
from nm_export.sizes import size_in_words
from tests.conftest import MIXED
from tests.tiny_folder import SIZES, tiny_recipe, write_tiny_folder

REFERENCE = {"weights": "reference"}
PRUNED = "model.layers.0.mlp.up_proj"
WEIGHTS = {"modules": PRUNED, "prune": "weights", "score": "magnitude", "shift": "none"}
SPARSITY = {**MIXED, "overrides": [*MIXED["overrides"], WEIGHTS]}


@pytest.fixture(scope="module")
def small(tiny_source, tmp_path_factory):
    """The model of `exported` and one pruned weight, as a reference to its base model. Read only."""
    folder = tmp_path_factory.mktemp("small") / "tiny"
    recipe = tiny_recipe(tiny_source, sparsity=SPARSITY, publish=REFERENCE)
    return pipeline.run(recipe, output_dir=folder, skip_onnx=True).folder


def command(*words):
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def files(folder):
    """All but the record of a run, which a conversion is none."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "stages.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_what_is_written(small, tiny_source):
    new = load_file(small / "nm_parameters.safetensors")
    assert {name for name in new if ".nm_" not in name} == {f"{PRUNED}.weight"}
    assert not (small / "model.safetensors").exists()
    elsewhere = json.loads((small / "config.json").read_text())["base_weights"]
    assert elsewhere["folder"] == str(tiny_source)
    record = json.loads((small / "nm_export.json").read_text())
    assert {name: file["sha256"] for name, file in elsewhere["files"].items()} == record["base_model"]["weights_sha256"]
    assert json.loads((small / "measurements.json").read_text())["verification"]["reloaded_logits_equal"] is True


def test_both_forms_from_each_other(small, tiny_source, tmp_path):
    recipe = tiny_recipe(tiny_source, sparsity=SPARSITY)
    pipeline.run(recipe, output_dir=tmp_path / "run", skip_onnx=True)
    converted = command("convert", small, tmp_path / "full", "--weights", "full")
    assert converted.exit_code == 0, converted.output
    assert "every tensor and the logits are bit-equal" in converted.output
    assert files(tmp_path / "full").keys() == files(tmp_path / "run").keys()
    for name in ("model.safetensors", "config.json", "generation_config.json", "modeling_nm_sparse.py"):
        assert (tmp_path / "full" / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name
    back = tmp_path / "back" / small.name  # by which the card loads it
    converted = command("convert", tmp_path / "full", back, "--weights", "reference")
    assert converted.exit_code == 0, converted.output
    assert files(back) == files(small)


def test_onnx_is_kept(exported, tmp_path):
    assert command("convert", exported, tmp_path / "small", "--weights", "reference").exit_code == 0
    written, before = files(tmp_path / "small"), files(exported)
    assert written.keys() ^ before.keys() == {"model.safetensors", "nm_parameters.safetensors"}
    assert {name for name in before if name in written and before[name] != written[name]} == {
        "config.json",
        *("README.md", "report.html"),  # which say where the weights are
    }
    assert "they are read from the base model's folder" in (tmp_path / "small" / "README.md").read_text()
    report = pipeline.verify_folder(tmp_path / "small").to_dict()
    assert set(report["modules"]) == {"reloaded", "onnx_kernel", "onnx_function"}


def test_a_folder_without_onnx_from_one_with_it(exported, tmp_path):
    small = tmp_path / "ein Gedicht äö"
    converted = command("convert", exported, small, "--weights", "reference", "--skip-onnx")
    assert converted.exit_code == 0, converted.output
    assert "of onnx/ are left out" in converted.output
    assert not (small / "onnx").exists()
    card = (small / "README.md").read_text()
    assert f'from_pretrained("{small.name}"' in card
    assert "ONNX Runtime, compiled operators" not in card
    assert "\n- onnx\n" not in card
    check_publishable(small)
    assert set(pipeline.verify_folder(small).report.modules) == {"reloaded"}
    with_all = command("convert", exported, tmp_path / "full", "--skip-onnx")
    assert with_all.exit_code == 0, with_all.output
    assert (tmp_path / "full" / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    check_publishable(tmp_path / "full")
    (small / "nm_parameters.safetensors").unlink()
    with pytest.raises(UserError, match=r"nm_parameters\.safetensors is missing"):
        check_publishable(small)


def test_the_size_of_the_onnx_part_is_said(exported, tmp_path):
    converted = command("convert", exported, tmp_path / "small", "--weights", "reference")
    onnx = sum(path.stat().st_size for path in (exported / "onnx").iterdir())
    assert f"onnx/ holds {size_in_words(onnx)} more, which --skip-onnx leaves out;" in converted.output
    check_publishable(tmp_path / "small")


def test_another_result_is_not_put_in_place(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(base_weights, "_is_same", lambda tensors, originals, name: name in originals)
    source = tmp_path / "full"
    shutil.copytree(exported, source)
    with_other_norm(source)
    refused = command("convert", source, tmp_path / "small", "--weights", "reference")
    assert refused.exit_code == NMExportError.exit_code
    assert "Conversion failed: model.norm.weight is another tensor" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def with_other_norm(folder):
    model, _, _ = load_exported(folder)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(folder)


def test_what_cannot_be_converted(small, exported, tmp_path):
    other = write_tiny_folder(tmp_path / "other", LlamaConfig(**{**SIZES, "hidden_size": 96}, head_dim=16))
    for words, sentence in (
        ((small, tmp_path / "out", "--weights", "reference"), f"The weights of {small} are reference already."),
        ((exported, tmp_path / "out", "--weights", "full"), f"The weights of {exported} are full already."),
        ((small, small / "out", "--weights", "full"), "lie in each other"),
        ((exported, tmp_path / "out"), "Say what is to change: --weights full, --weights reference or --skip-onnx"),
        ((small, tmp_path / "out", "--skip-onnx"), f"{small} has no ONNX export that could be left out"),
        (
            (small, tmp_path / "out", "--weights", "full", "--base", "a/b"),
            "--base and --revision are for --weights ref",
        ),
        ((tmp_path, tmp_path / "out", "--weights", "full"), "holds no exported model"),
        (
            (exported, tmp_path / "out", "--weights", "reference", "--base", other),
            f"No weight of the exported model is that of {other}",
        ),
    ):
        refused = command("convert", *words)
        assert refused.exit_code == UserError.exit_code, refused.output
        assert sentence in refused.stderr, refused.stderr
        assert not (tmp_path / "out").exists()


def test_a_changed_base_model_is_one_sentence(small, tiny_source, tmp_path):
    shutil.copytree(tiny_source, tmp_path / "base")
    shutil.copytree(small, tmp_path / "small")
    path = tmp_path / "small" / "config.json"
    path.write_text(path.read_text().replace(str(tiny_source), str(tmp_path / "base")))
    load_exported(tmp_path / "small")
    with (tmp_path / "base" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    for words in (("verify", tmp_path / "small"), ("convert", tmp_path / "small", tmp_path / "out", "--weights=full")):
        refused = command(*words)
        assert refused.exit_code == UserError.exit_code
        assert "is not the file that this model was made from" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()


SAMPLE = "sample:smollm2-135m-instruct"


@pytest.mark.parametrize("source", [SAMPLE, "model.gguf", "bin"])
@pytest.mark.parametrize("go", [dry_run, pipeline.run])
def test_bases_without_safetensors_are_refused_at_once(source, go, tiny_source, tmp_path):
    place = source if source == SAMPLE else tmp_path / source
    if source == "model.gguf":
        place.write_bytes(b"GGUF")
    elif source == "bin":
        shutil.copytree(tiny_source, place)
        (place / "model.safetensors").unlink()
        model = AutoModelForCausalLM.from_pretrained(tiny_source)
        torch.save(model.state_dict(), place / "pytorch_model.bin")
    sentence = r"publish\.weights: reference leaves weights to safetensors files.*use publish\.weights: full"
    if source == "bin":
        sentence = r"bin has no weights as safetensors; its \.bin or \.pt files are pickles"
    with pytest.raises(UserError, match=sentence):
        go(tiny_recipe(place, publish=REFERENCE), output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_dtype_leaves_nothing_to_the_base_model(tiny_source, tmp_path):
    recipe = tiny_recipe(tiny_source, model={"dtype": "bfloat16"}, publish=REFERENCE)
    with pytest.raises(
        UserError, match=r"whose float32 weights model\.dtype bfloat16 rounds.*set model\.dtype to auto"
    ):
        pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True)
    assert not list(tmp_path.iterdir())


def test_dry_run(tiny_source, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tiny_source, publish=REFERENCE).to_dict()))
    shown = command(recipe, "--dry-run", "--output-dir", tmp_path / "out")
    assert shown.exit_code == 0
    words = " ".join(shown.stdout.split())
    assert f"new weights only; the others stay in {tiny_source}" in words
