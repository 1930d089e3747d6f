"""Verification of graphs with quantized weights: they agree with the model that holds them, and are the model's own."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from nm_export import load_exported, pipeline
from nm_export.errors import NMExportError
from nm_export.onnx.quantize import WeightFormat
from nm_export.verification import verify
from nm_export.verification.quantized import _largest_error, stored_weights_in
from tests.conftest import MIXED
from tests.tiny_folder import tiny_recipe
from tests.verification.test_verify import SEQUENCES, reloading_is_fine  # noqa: F401

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def exported(tiny_source, tmp_path_factory):
    """As the fixture of the same name, with weights of 4 bits."""
    folder = tmp_path_factory.mktemp("quantized") / "tiny-int4"
    onnx = {"precision": "int4", "block_size": 16}
    pipeline.run(tiny_recipe(tiny_source, sparsity=MIXED, onnx=onnx), output_dir=folder)
    return folder


@pytest.fixture(scope="module")
def model(exported):
    return load_exported(exported)[0]


@pytest.fixture
def folder(exported, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(exported, tmp_path / "copy")


def change(folder, name, damage):
    """Write other bytes into the data file of the graph."""
    graph = onnx.load(folder / "onnx" / "model.onnx", load_external_data=False).graph
    place = {e.key: e.value for e in next(t for t in graph.initializer if t.name == name).external_data}
    offset, length = int(place["offset"]), int(place["length"])
    stored = np.memmap(folder / "onnx" / place["location"], np.uint8, "r+", offset, (length,))
    damage(stored)
    stored.flush()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_models_of_bfloat16_are_verified_as_strictly(precision, tiny_source, tmp_path):
    recipe = tiny_recipe(
        tiny_source, model={"dtype": "bfloat16"}, sparsity={"pattern": "2:4"}, onnx={"precision": precision}
    )
    report = pipeline.run(recipe, output_dir=tmp_path / "out").verification
    assert report.modules["onnx_kernel"].largest_error < 1e-5
    assert report.modules["onnx_function"].largest_error < 1e-5


def test_what_was_measured_is_reported(exported):
    numbers = json.loads((exported / "measurements.json").read_text())
    report = numbers["verification"]
    assert set(report["against_dense"]) == {"dense", "dense_int4", "sparse", "sparse_int4"}
    assert report["against_dense"]["dense"]["kl"] == 0 < report["against_dense"]["dense_int4"]["kl"]
    assert report["modules"]["onnx_function"]["kept_channels_equal"]
    assert report["modules"]["onnx_function"]["largest_error"] < 1e-5
    quantization = numbers["quantization"]
    assert (quantization["precision"], quantization["block_size"]) == ("int4", 16)
    assert 0.01 < quantization["pruned_modules_mean"]["error"] < 0.1
    assert set(quantization["modules"][DOWN]) == {"error", "matmul_nbits"}
    assert set(quantization["modules"]["lm_head"]) == {"error"}
    assert "int4, 16 neighbouring inputs to a scale; in pruned layers they are" in (exported / "README.md").read_text()


def test_the_model_gets_its_weights_back(exported, model):
    before = {name: (id(parameter), parameter.clone()) for name, parameter in model.named_parameters()}
    with stored_weights_in(model, exported / "onnx" / "model.onnx"):
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n][1])}
        linears = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        assert changed == linears
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0]
        assert torch.equal(parameter, before[name][1])


@pytest.mark.usefixtures("reloading_is_fine")
@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.layers.1.mlp.down_proj.MatMul.weight_Q4", lambda b: b.__setitem__(0, b[0] ^ 0x88), DOWN),
        (
            "model.layers.1.mlp.down_proj.MatMul.weight_scales",
            lambda b: b.view(np.float16).__imul__(np.float16(1.3)),
            DOWN,
        ),
        ("lm_head.MatMul.weight_Q4", lambda b: b.__setitem__(slice(None), b[::-1].copy()), "lm_head"),
    ],
)
def test_weights_that_are_not_the_model_s(name, damage, message, folder, model):
    change(folder, name, damage)
    with pytest.raises(NMExportError, match=f"the weight of {message} in the ONNX graph is not the calibrated model's"):
        verify(folder, model, SEQUENCES)


@pytest.mark.usefixtures("reloading_is_fine")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.1.mlp.up_proj.sparse_bias", r"outputs of model\.layers\.1\.mlp\.up_proj in onnx_kernel"),
        ("model.layers.1.mlp.down_proj.NMTopK.shift", r"onnx_kernel .* model\.layers\.1\.mlp\.down_proj"),
        ("model.norm.weight", "end to end"),
    ],
)
def test_everything_else_is_compared_as_ever(name, message, folder, model):
    graph = onnx.load(folder / "onnx" / "model.onnx", load_external_data=False).graph
    name = next((t.name for t in graph.initializer if t.name == name), "model.layers.2.final_norm_layernorm.weight")
    change(folder, name, lambda stored: stored.view(np.float32).__setitem__(slice(0, 8), 9.0))
    with pytest.raises(NMExportError, match=message):
        verify(folder, model, SEQUENCES)


def test_a_block_is_judged_by_its_own_range():
    weight = torch.cat([torch.full((1, 16), 7.0), torch.full((1, 16), 0.07)], dim=1)
    other = weight.clone()
    other[0, 20] += 0.04
    assert _largest_error(weight, other, WeightFormat(4, 16)) == pytest.approx(1.0, rel=1e-4)  # 4 steps in 1 of 16
