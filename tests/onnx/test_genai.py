"""onnxruntime-genai: folders open everywhere, and run compiled where that is switched on."""

import json
import shutil

import onnxruntime_genai
import pytest

from nm_export.errors import UserError
from nm_export.onnx import disable_library, enable_library, genai_model
from tests.onnx.test_session import linked
from tests.refusal import assert_refused

PROMPT = [5, 6, 7, 8, 9]


def generated(model):
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=20, min_length=20, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0).tolist()


def library_key(folder):
    config = json.loads((folder / "onnx" / "genai_config.json").read_text())
    return config["model"]["decoder"]["session_options"].get("custom_ops_library")


@pytest.fixture
def folder(publish, tmp_path):
    shutil.copytree(publish("llama", "weight_norm").folder, tmp_path / "published")
    return tmp_path / "published"


def test_folder_opens_as_it_is_and_loader_leaves_it_alone(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    plain = generated(onnxruntime_genai.Model(str(folder / "onnx")))
    assert len(plain) == 20
    assert generated(genai_model(folder, library=True)) == plain
    assert generated(genai_model(folder, library=False)) == plain
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_loader_makes_tokenizers(folder):
    tokenizer = onnxruntime_genai.Tokenizer(genai_model(folder, library=True))
    assert tokenizer.decode(tokenizer.encode("!!#")) == "!!#"


def test_loader_follows_links(folder, tmp_path):
    assert len(generated(genai_model(linked(folder, tmp_path / "cache"), library=True))) == 20


def test_enable_and_disable(folder):
    untouched = (folder / "onnx" / "genai_config.json").read_text()
    library = enable_library(folder)
    assert library.parent == folder / "onnx"
    assert library_key(folder) == library.name
    assert len(generated(onnxruntime_genai.Model(str(folder / "onnx")))) == 20
    assert enable_library(folder / "onnx") == library
    disable_library(folder)
    assert library_key(folder) is None
    assert not library.exists()
    assert json.loads((folder / "onnx" / "genai_config.json").read_text()) == json.loads(untouched)


def test_enabling_in_a_cache_does_not_write_through_links(folder, tmp_path):
    snapshot = linked(folder, tmp_path / "cache")
    blobs = {path: path.read_bytes() for path in (tmp_path / "cache" / "blobs").iterdir()}
    enable_library(snapshot)
    assert {path: path.read_bytes() for path in (tmp_path / "cache" / "blobs").iterdir()} == blobs
    assert len(generated(onnxruntime_genai.Model(str(snapshot / "onnx")))) == 20


def test_loader_is_compiled_only_if_there_is_a_library(folder, no_library):
    with pytest.warns(UserWarning, match="slower than compiled"):
        assert len(generated(genai_model(folder))) == 20
    with pytest.raises(UserError, match=r"missing\.so"):
        genai_model(folder, library=True)


def test_folder_without_export_is_named(tmp_path):
    for action in (enable_library, disable_library, genai_model):
        with pytest.raises(UserError, match=r"has no genai_config\.json"):
            action(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.onnx", None, r"onnx has no model\.onnx: copy or download"),
        ("model.onnx.data", None, r"onnx has no model\.onnx\.data: copy or download"),
        ("genai_config.json", "{", r"published/onnx/genai_config\.json is not valid JSON"),
        ("genai_config.json", "{}", r"published/onnx/genai_config\.json has no model\.decoder\.session_options"),
    ],
)
def test_incomplete_and_damaged_folders_are_named(folder, file, content, message):
    (folder / "onnx" / file).unlink()
    if content is not None:
        (folder / "onnx" / file).write_text(content)
    with pytest.raises(UserError, match=message):
        genai_model(folder)
    with pytest.raises(UserError, match=r"config\.json is a file: give the folder"):
        genai_model(folder / "config.json")


@pytest.mark.parametrize("name", ["../victim.so", "/tmp/victim.so", "sub/../../victim.so"])
def test_a_configuration_names_no_file_outside_its_folder(tmp_path, name):
    victim = tmp_path / "victim.so"
    victim.write_text("mine")
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model": {"decoder": {"filename": "model.onnx", "session_options": {"custom_ops_library": name}}}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert_refused(["enable-genai", str(folder), "--off"], "custom_ops_library is .* no file of the folder")
    config["model"]["decoder"]["session_options"] = {}
    config["model"]["vision"] = {"filename": name}
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert_refused(["enable-genai", str(folder), "--off"], "filename is .* no file of the folder")
    (folder / "genai_config.json").write_text("[" * 100_000)
    assert_refused(["enable-genai", str(folder), "--off"], "nested deeper")
    assert victim.read_text() == "mine"
