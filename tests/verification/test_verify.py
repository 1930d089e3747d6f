"""Verification must be able to fail: every kind of damage is found, and the first module that it hits is named."""

import json
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from nm_export import load_exported, pipeline
from nm_export.errors import NMExportError, UserError
from nm_export.publishing.repository import Destination
from nm_export.publishing.save import write_model
from nm_export.verification import verify
from nm_export.verification.modules import ModuleRecord, check_modules, record_modules
from tests.tiny_folder import tiny_recipe

SEQUENCES = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model(exported):
    return load_exported(exported)[0]


@pytest.fixture
def folder(exported, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(exported, tmp_path / "copy")


def change_tensor(folder, name, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


def change_initializer(folder, name, change):
    """Write other numbers into the data file of the graph."""
    graph = onnx.load(folder / "onnx" / "model.onnx", load_external_data=False).graph
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    shape, offset = tuple(tensor.dims), int(place["offset"])
    array = np.memmap(folder / "onnx" / place["location"], np.float32, "r+", offset, shape)
    change(array)
    array.flush()


def add_one(tensor):
    tensor[0] += 1


def mirror(vector):
    vector[:] = np.asarray(vector)[::-1].copy()


def test_what_was_written_passes(exported, model):
    report = verify(exported, model, SEQUENCES)
    assert set(report.modules) == {"reloaded", "onnx_kernel", "onnx_function"}
    assert set(report.end_to_end) == set(report.greedy_agreement) == {"onnx_kernel", "onnx_function"}
    assert report.floor.kl < 1
    assert json.loads(json.dumps(report.to_dict()))["reloaded_logits_equal"] is True


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.self_attn.o_proj.weight", r"outputs of model\.layers\.0\.self_attn\.o_proj in the reloaded"),
        ("model.layers.1.mlp.gate_proj.nm_offset", r"outputs of model\.layers\.1\.mlp\.gate_proj in the reloaded"),
        ("model.norm.weight", "gives other logits"),
    ],
)
def test_a_changed_number_in_the_safetensors(name, message, folder, model):
    change_tensor(folder, name, add_one)
    with pytest.raises(NMExportError, match=message) as caught:
        verify(folder, model, SEQUENCES, onnx=False)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("gone", [True, False])
def test_a_parameter_that_is_missing_or_has_no_place(gone, folder, model):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(".nm_score"))
    if gone:
        del tensors[name]
    else:
        tensors[name := name.replace("nm_score", "nm_rank")] = torch.ones(1)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=re.escape(name)):
        load_exported(folder)
    with pytest.raises(NMExportError, match=re.escape(name)):
        verify(folder, model, SEQUENCES)


def test_another_pattern_in_the_configuration(folder, model):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"3:8"', '"2:8"'))
    with pytest.raises(
        NMExportError, match=r"reloaded model keeps other channels .* in model\.layers\.0\.self_attn\.v_"
    ):
        verify(folder, model, SEQUENCES, onnx=False)


def test_code_that_needs_the_package(folder, model):
    path = folder / "modeling_nm_sparse.py"
    path.write_text(path.read_text().replace("import functools\n", "import functools\nimport nm_export\n"))
    with pytest.raises(NMExportError, match=r"cannot be reloaded with its own code: .*nm_export"):
        verify(folder, model, SEQUENCES, onnx=False)


@pytest.fixture
def reloading_is_fine(monkeypatch, model):
    """What the process that reloads the folder would say of an undamaged one."""

    def reload_and_record(folder, ids, inputs, dtype):
        records = {name: (record.kept, record.output) for name, record in record_modules(model, inputs).items()}
        with torch.no_grad():
            return model(ids, use_cache=False).logits, records

    monkeypatch.setattr("nm_export.verification.forms.reload_and_record", reload_and_record)


@pytest.mark.usefixtures("reloading_is_fine")
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "model.layers.0.attn.o_proj.MatMul.weight",
            add_one,
            r"outputs of model\.layers\.0\.self_attn\.o_proj in onnx_k",
        ),
        (
            "model.layers.1.mlp.up_proj.sparse_bias",
            add_one,
            r"outputs of model\.layers\.1\.mlp\.up_proj in onnx_kernel",
        ),
        (
            "model.layers.0.attn.q_proj.NMTopK.score",
            mirror,
            r"onnx_kernel keeps other .* model\.layers\.0\.self_attn\.q_",
        ),
        ("model.layers.1.mlp.down_proj.NMTopK.shift", add_one, r"onnx_kernel .* model\.layers\.1\.mlp\.down_proj"),
        ("lm_head.MatMul.weight", mirror, "end to end .* although every module agrees"),
    ],
)
def test_a_changed_number_in_the_graph(name, change, message, folder, model):
    change_initializer(folder, name, change)
    with pytest.raises(NMExportError, match=message):
        verify(folder, model, SEQUENCES)


@pytest.mark.usefixtures("reloading_is_fine")
def test_another_attribute_in_the_graph(folder, model):
    path = folder / "onnx" / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    node = [node for node in graph.graph.node if node.op_type == "NMTopK"][4]
    next(attribute for attribute in node.attribute if attribute.name == "n").i += 1
    onnx.save(graph, path)
    with pytest.raises(NMExportError, match=r"onnx_kernel keeps other channels .* in model\.layers\.0\.mlp\.gate_proj"):
        verify(folder, model, SEQUENCES)


def test_what_fails_verification_gets_no_name_and_is_written_anew(tiny_source, tmp_path, monkeypatch):
    recipe = tiny_recipe(tiny_source, sparsity={"pattern": "8:16"}, evaluation={"enabled": False})
    target = tmp_path / "out"
    pipeline.run(tiny_recipe(tiny_source, verify={"enabled": False}), output_dir=target, skip_onnx=True)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}

    def damaged(model, tokenizer, folder, max_shard_size, dtype):
        write_model(model, tokenizer, folder, max_shard_size, dtype)
        change_tensor(folder, "model.layers.1.mlp.down_proj.weight", add_one)

    monkeypatch.setattr("nm_export.pipeline.write_model", damaged)
    uploads = []
    monkeypatch.setattr("nm_export.pipeline.push", lambda *args, **options: uploads.append(args))
    destination = Destination("someone/model", "someone")
    monkeypatch.setattr("nm_export.pipeline.find_destination", lambda *_, **options: destination)
    for options in ({"output_dir": target, "overwrite": True}, {"output_dir": tmp_path / "new"}):
        with pytest.raises(NMExportError, match=r"outputs of model\.layers\.1\.mlp\.down_proj in the reloaded model"):
            pipeline.run(recipe, skip_onnx=True, push_to_hub=True, **options)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["out"]
    assert not list(tmp_path.rglob(".*.work/model/*.safetensors"))
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    assert not uploads
    monkeypatch.setattr("nm_export.pipeline.write_model", write_model)
    pipeline.run(recipe, skip_onnx=True, output_dir=tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".out")) == ["new", "out"]


def record(kept, output):
    return ModuleRecord(torch.tensor([kept]), torch.tensor([output]))


EXPECTED = {
    "first": record([[True, False]], [[1.0, 4.0]]),
    "second": record([[False, True]], [[0.0, 2.0]]),
}


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        ({"first": ([[[1, 0]]], [[[1.0, 4.0]]])}, "some backend has no module second"),
        ({"first": ([[[0, 1]]], [[[1.0, 4.0]]])}, r"some backend keeps other .* in first \(2 of 2 differ\)"),
        (
            {"first": ([[[1, 0]]], [[[1.0, 4.1]]])},
            r"outputs of first in some backend differ by 2\.50e-02 .* allows 1e-02",
        ),
        ({"first": ([[[1, 0]]], [[[1.0, float("nan")]]])}, "outputs of first in some backend differ by nan"),
    ],
)
def test_first_module_that_differs_is_named(actual, message):
    arrays = {name: tuple(np.array(part) for part in parts) for name, parts in actual.items()}
    with pytest.raises(NMExportError, match=message):
        check_modules("some backend", EXPECTED, arrays, tolerance=0.01)


def test_rounding_is_accepted_and_reported():
    actual = {name: (r.kept.numpy(), r.output.numpy() + np.float32(0.02)) for name, r in EXPECTED.items()}
    check = check_modules("some backend", EXPECTED, actual, tolerance=0.011)
    assert (check.modules, check.kept_channels_equal) == (2, True)
    assert check.largest_error == pytest.approx(0.01, rel=1e-3)
