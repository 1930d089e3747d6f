"""Where half precision is slow, a run computes in float32 and stores what it was given, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from nm_export import compute_dtype, pipeline
from nm_export.compute_dtype import choose_compute_type, slowdown
from nm_export.dry_run import dry_run
from nm_export.errors import NMExportError
from nm_export.evaluation.opening import open_model
from nm_export.loading import load_exported
from nm_export.verification import verify
from tests.pipeline.test_dry_run import text_of
from tests.tiny_folder import SIZES, tiny_recipe, write_tiny_folder

LEARNING = {
    "mode": "blockwise",
    "parameters": ["shift", "bias", "weight"],
    "num_samples": 4,
    "held_out_samples": 2,
    "sequence_length": 32,
    "epochs": 1,
}


def is_slow(monkeypatch, times):
    monkeypatch.setattr(compute_dtype, "slowdown", lambda dtype: times)


CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES, head_dim=16, dtype="bfloat16", tie_word_embeddings=True),
    # it has a buffer that depends on the type of the model
    "gemma3": lambda: Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=16, dtype="bfloat16"),
}


def write_half(folder, name="llama"):
    """A folder of bfloat16."""
    source = write_tiny_folder(folder, CONFIGS[name]())
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    assert {tensor.dtype for tensor in load_file(source / "model.safetensors").values()} == {torch.bfloat16}
    return source


@pytest.fixture
def half(tmp_path):
    return write_half(tmp_path / "source")


def record_of(folder):
    return json.loads((folder / "nm_export.json").read_text())["base_model"]


@pytest.mark.parametrize(("times", "name"), [(1.0, "llama"), (20.0, "llama"), (20.0, "gemma3")])
def test_weights_keep_their_bits_and_their_type_whatever_is_computed_in(times, name, tmp_path, monkeypatch, capfd):
    is_slow(monkeypatch, times)
    half = write_half(tmp_path / "source", name)
    recipe = tiny_recipe(half, sparsity={"score": "weight_norm", "shift": "static_channel"})
    pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True)
    said = " ".join(capfd.readouterr().err.split())
    assert ("Computing in float32: this machine multiplies bfloat16 20 times as slowly; the wei" in said) == (times > 2)
    before, after = (load_file(folder / "model.safetensors") for folder in (half, tmp_path / "out"))
    assert before.keys() == {name for name in after if ".nm_" not in name}
    for name, tensor in before.items():
        assert after[name].dtype == torch.bfloat16
        assert torch.equal(after[name], tensor)
    assert {tensor.dtype for name, tensor in after.items() if ".nm_" in name} == {torch.float32}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["base_config"]["dtype"] == "bfloat16"
    record = record_of(tmp_path / "out")
    assert (record["dtype"], record.get("compute_dtype")) == ("bfloat16", "float32" if times > 2 else None)
    assert load_exported(tmp_path / "out")[0].dtype == torch.bfloat16
    assert load_exported(tmp_path / "out", quick=True)[0].dtype == (torch.float32 if times > 2 else torch.bfloat16)
    for source in (half, tmp_path / "out"):
        assert open_model(source).model.dtype == (torch.float32 if times > 2 else torch.bfloat16)
    pipeline.verify_folder(tmp_path / "out")


def test_a_finished_folder_holds_whatever_the_machine_measures_next(half, tmp_path, monkeypatch):
    recipe = tiny_recipe(half)
    is_slow(monkeypatch, 20.0)
    pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True)
    is_slow(monkeypatch, 1.0)
    before = (tmp_path / "out" / "stages.json").stat().st_mtime_ns
    pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True)
    assert (tmp_path / "out" / "stages.json").stat().st_mtime_ns == before


def test_an_interrupted_run_goes_on_in_the_type_that_it_began_with(half, tmp_path, monkeypatch):
    recipe = tiny_recipe(half)
    is_slow(monkeypatch, 20.0)

    def stops(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(pipeline, "write_model", stops)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True)
    is_slow(monkeypatch, 1.0)
    monkeypatch.setattr("nm_export.preparation.calibrate", stops)  # done already
    pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True)
    assert record_of(tmp_path / "out")["compute_dtype"] == "float32"


def test_trained_weights_are_rounded_before_anything_is_measured(tmp_path, monkeypatch):
    is_slow(monkeypatch, 20.0)
    source = write_tiny_folder(tmp_path / "source", LlamaConfig(**SIZES, head_dim=16))
    recipe = tiny_recipe(
        source, model={"dtype": "bfloat16"}, sparsity={"shift": "learned", "output_bias": "learned"}, learning=LEARNING
    )
    pipeline.run(recipe, output_dir=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["sparsity"]["rewritten"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for name, t in tensors.items() if ".nm_" not in name} == {torch.bfloat16}
    name = config["sparsity"]["rewritten"][0].removesuffix(".weight")
    exact = tensors[f"{name}.weight"].double() @ tensors[f"{name}.nm_shift"].double()
    torch.testing.assert_close(tensors[f"{name}.nm_offset"].double(), exact, rtol=1e-6, atol=1e-6)


def test_weights_that_stay_in_the_base_model_are_its_own(half, tmp_path, monkeypatch):
    is_slow(monkeypatch, 20.0)
    recipe = tiny_recipe(half, publish={"weights": "reference"}, sparsity={"score": "weight_norm"})
    pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True)
    tensors = load_file(tmp_path / "out" / "nm_parameters.safetensors")
    assert all(".nm_" in name for name in tensors)


def test_a_file_in_another_type_fails_verification(half, tmp_path, monkeypatch):
    is_slow(monkeypatch, 20.0)
    pipeline.run(tiny_recipe(half), output_dir=tmp_path / "out", skip_onnx=True)
    model = load_exported(tmp_path / "out", quick=True)[0]
    ids = torch.arange(24)[None]
    verify(tmp_path / "out", model, ids, onnx=False, stored=torch.bfloat16)
    with pytest.raises(NMExportError, match=r"is stored as BF16 in .*model\.safetensors, not as F16"):
        verify(tmp_path / "out", model, ids, onnx=False, stored=torch.float16)


def test_the_dry_run_says_what_would_be_computed_in(half, tmp_path, monkeypatch):
    is_slow(monkeypatch, 20.0)
    slow = dry_run(tiny_recipe(half), output_dir=tmp_path / "out", skip_onnx=True)
    assert "compute in float32: this machine multiplies bfloat16 20 times as slowly; the weights" in text_of(slow)
    is_slow(monkeypatch, 1.0)
    quick = dry_run(tiny_recipe(half), output_dir=tmp_path / "out", skip_onnx=True)
    assert "compute in" not in text_of(quick)
    assert slow.estimate.costs[0].memory > quick.estimate.costs[0].memory
    assert slow.estimate.disk == quick.estimate.disk


def test_the_choice(monkeypatch):
    is_slow(monkeypatch, 20.0)
    bf16, f32 = torch.bfloat16, torch.float32
    assert choose_compute_type("auto", bf16, 1000).computed == f32
    assert choose_compute_type("auto", torch.float16, 1000).computed == f32
    assert choose_compute_type("stored", bf16, 1000).computed == bf16
    assert choose_compute_type("auto", f32, 1000).why == ""
    assert choose_compute_type("auto", bf16, 1000, earlier=bf16).computed == bf16
    huge = choose_compute_type("auto", bf16, 10**15)
    assert huge.computed == bf16
    assert "4,000,000.0 GB of float32 do not fit into memory" in huge.why
    is_slow(monkeypatch, 1.0)
    assert choose_compute_type("auto", bf16, 1000).computed == bf16
    assert choose_compute_type("float32", bf16, 1000).computed == f32
    assert choose_compute_type("auto", bf16, 1000, earlier=f32).computed == f32


def test_the_measurement_is_a_plausible_number():
    assert 0 < slowdown(torch.bfloat16) < 1000
