"""Folders that earlier versions published load to the logits that they had then, and prune the same channels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from nm_export import NMSparseForCausalLM, NMSparseORTModelForCausalLM, load_exported
from nm_export.onnx import genai_model, run_probe

GOLDEN = sorted(path for path in Path(__file__).parent.iterdir() if (path / "expected.safetensors").is_file())
# Machines split and order sums in their own ways; nothing else may differ.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def linked(folder: Path, directory: Path) -> Path:
    """The folder as the Hub's cache lays it out: links to blobs without a name."""
    snapshot, blobs = directory / "snapshots" / "commit", directory / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = blobs / f"{number:040x}"
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


@pytest.fixture(params=[False, True], ids=["files", "links"])
def golden(request, version, tmp_path):
    """The folder, once as files and once as links, and what it must compute."""
    folder = version / "model"
    return linked(folder, tmp_path) if request.param else folder, load_file(version / "expected.safetensors")


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name)
def version(request):
    return request.param


def part(expected, name):
    """The tensors `MODULE#name`, by module."""
    return {key.split("#")[0]: tensor for key, tensor in expected.items() if key.endswith(f"#{name}")}


def assert_computes(model, expected):
    with torch.no_grad():
        torch.testing.assert_close(model(expected["ids"]).logits, expected["logits"], **ROUNDING)
        modules = model.nm_modules()
        inputs = part(expected, "input")
        assert modules.keys() == inputs.keys()
        for name, x in inputs.items():
            calls = (x, x[:, -1:])  # all tokens at once, then the last alone
            kept = torch.cat([modules[name].prune(call)[0] != 0 for call in calls], dim=1)
            assert torch.equal(kept, expected[f"{name}#kept"]), name
            output = torch.cat([modules[name](call) for call in calls], dim=1)
            torch.testing.assert_close(output, expected[f"{name}#output"], **ROUNDING)


def test_there_is_one():
    assert "v1" in [path.name for path in GOLDEN]


def test_with_its_own_code(golden):
    folder, expected = golden
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules.")
    assert_computes(model, expected)
    headless = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = model.get_output_embeddings()(headless(expected["ids"]).last_hidden_state)
    torch.testing.assert_close(logits, expected["logits"], **ROUNDING)


def test_with_the_installed_package(golden):
    folder, expected = golden
    model = NMSparseForCausalLM.from_pretrained(folder).eval()
    assert type(model).__module__.startswith("nm_export.")
    assert_computes(model, expected)


def test_with_its_recipe_and_tokenizer(version):
    _, tokenizer, recipe = load_exported(version / "model")
    text = "for every later version"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert recipe.sparsity.pattern == "8:16"


@pytest.mark.parametrize("library", [True, False], ids=["kernel", "body"])
def test_in_onnx_runtime(library, golden):
    folder, expected = golden
    model = NMSparseORTModelForCausalLM.from_pretrained(folder, library=library)
    torch.testing.assert_close(model(expected["ids"]).logits, expected["logits"], rtol=1e-4, atol=1e-4)
    inputs = part(expected, "input")
    for start, rows in ((0, slice(None, -1)), (-1, slice(-1, None))):
        fed = {name: x[:, start:].numpy() for name, x in inputs.items()}
        answers = run_probe(folder / "onnx" / "model.onnx", fed, library=library)
        assert answers.keys() == inputs.keys()
        for name, (kept, output) in answers.items():
            np.testing.assert_array_equal(kept, expected[f"{name}#kept"][:, rows].numpy(), err_msg=name)
            np.testing.assert_allclose(output, expected[f"{name}#output"][:, rows].numpy(), rtol=1e-4, atol=1e-4)


def test_in_onnxruntime_genai(golden):
    og = pytest.importorskip("onnxruntime_genai")
    folder, expected = golden
    model = genai_model(folder / "onnx", library=True)
    generator = og.Generator(model, og.GeneratorParams(model))
    generator.append_tokens(expected["ids"][0].tolist())
    last = torch.from_numpy(np.array(generator.get_output("logits"), dtype=np.float32))[:, -1]
    torch.testing.assert_close(last, expected["logits"][:, -1], rtol=1e-4, atol=1e-4)


def test_is_small(version):
    assert sum(path.stat().st_size for path in version.rglob("*") if path.is_file()) < 300_000
