"""export_onnx: a folder that appears whole or not at all, and that says where it comes from."""

import json

import onnx
import pytest

from nm_export.errors import NMExportError, UserError
from nm_export.onnx import export_onnx
from tests.onnx.tiny import sparse


def test_folder_is_complete_and_portable(publish):
    published = publish("llama", "weight_norm")
    folder = published.folder / "onnx"
    names = {path.name for path in folder.iterdir()}
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert "custom_ops_library" not in (folder / "genai_config.json").read_text()
    result = published.result
    assert (result.num_operators, result.num_modules) == (8, 14)
    assert result.size_bytes == sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["recipe_sha256"] == "0" * 64
    assert metadata["version.onnxruntime"]
    assert [(f.domain, f.name) for f in model.functions] == [
        ("ai.nm_export", "NMTopK"),
        ("ai.nm_export", "NMSparseMatMul"),
    ]


def test_generation_settings_reach_genai(tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4")
    model.generation_config.update(do_sample=True, top_k=7, temperature=0.5, eos_token_id=[2, 5])
    export_onnx(model, tmp_path, tokenizer_dir=tokenizer_dir)
    config = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())
    assert (config["search"]["do_sample"], config["search"]["top_k"], config["search"]["temperature"]) == (True, 7, 0.5)
    assert config["model"]["eos_token_id"] == [2, 5]


def test_exporting_again_replaces(tokenizer_dir, tmp_path):
    for pattern in ("2:4", "1:4"):
        export_onnx(sparse(pattern=pattern), tmp_path, tokenizer_dir=tokenizer_dir)
    model = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False)
    prune = next(node for node in model.graph.node if node.op_type == "NMTopK")
    assert next(a.i for a in prune.attribute if a.name == "n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_a_failure_leaves_the_earlier_export(tokenizer_dir, tmp_path, monkeypatch):
    export_onnx(sparse(pattern="2:4"), tmp_path, tokenizer_dir=tokenizer_dir)
    before = (tmp_path / "onnx" / "model.onnx").read_bytes()

    def refuse(path):
        raise NMExportError("not valid")

    monkeypatch.setattr("nm_export.onnx.export.check_graph", refuse)
    with pytest.raises(NMExportError):
        export_onnx(sparse(pattern="1:4"), tmp_path, tokenizer_dir=tokenizer_dir)
    assert (tmp_path / "onnx" / "model.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_missing_package_is_named(tokenizer_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("nm_export.onnx.extras.find_spec", lambda module: None)
    with pytest.raises(UserError, match=r'onnx.*pip install "nm_export\['):
        export_onnx(sparse(pattern="2:4"), tmp_path, tokenizer_dir=tokenizer_dir)
