"""What is published is what was written: a folder that lost something is refused before the Hub is asked."""

import json
import shutil
import time

import pytest

from nm_export import load_exported, pipeline, save
from nm_export.errors import UserError
from nm_export.finished import STAGES_FILE, record_written, written_files
from nm_export.onnx import disable_library, enable_library
from nm_export.publishing import completeness
from nm_export.publishing.completeness import check_hashes, check_whole
from nm_export.publishing.contents import hash_contents, read_contents
from nm_export.publishing.hub import check_publishable
from tests.publishing.conftest import weights, write_files


@pytest.fixture
def copy(exported, tmp_path):
    """Of an exported folder; a test may change it."""
    return shutil.copytree(exported, tmp_path / "a copy äö")


@pytest.fixture(params=["sizes and hashes", "hashes only", "nothing"])
def any_age(request, copy):
    """The copy, with what versions of nm-export have written down of its files."""
    path = copy / STAGES_FILE
    known = json.loads(path.read_text())
    if request.param == "nothing":
        path.unlink()
    elif request.param == "hashes only":
        path.write_text(json.dumps({key: known[key] for key in ("format", "folder", "stages")}))
    return copy


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def test_a_whole_folder_is_published(any_age):
    start = time.process_time()
    check_publishable(any_age)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "onnx/model.onnx.data",
        "config.json",
        "configuration_nm_sparse.py",
        "reference_nm_sparse.py",
        "pictures/layers.svg",
    ],
)
def test_what_is_missing_is_named(name, any_age):
    (any_age / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing|has no weights"):
        check_publishable(any_age)


@pytest.mark.parametrize("name", ["model.safetensors", "onnx/model.onnx.data"])
def test_what_is_cut_is_named(name, any_age):
    cut(any_age / name)
    with pytest.raises(UserError, match=rf"{name} (has [\d,]+ bytes|is not as it was|is damaged or incomplete)"):
        check_publishable(any_age)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "onnx/model.onnx", "report.html"])
def test_everything_that_was_written_must_be_there(name, copy):
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing. Nothing is published; copy the folder again"):
        pipeline.publish_folder(copy)


def test_several_files_are_one_sentence(copy):
    for name in ("onnx/model.onnx", "model.safetensors"):
        (copy / name).unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing \(and so on, 2 files in all\)\. Nothing"):
        check_publishable(copy)


def test_a_folder_that_lost_its_onnx_part_is_told_how_to_do_without(copy):
    shutil.rmtree(copy / "onnx")
    with pytest.raises(UserError, match=r"`nm-export convert FOLDER OUTPUT --skip-onnx` makes a folder without"):
        check_publishable(copy)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "recipe.yaml", "onnx/genai_config.json"])
def test_a_changed_small_file_is_refused(name, copy):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content.replace(b"1", b"2", 1).replace(b"e", b"f", 1))
    with pytest.raises(UserError, match=f"{name} is not as it was written"):
        check_publishable(copy)


def test_a_changed_large_file_is_refused_when_it_was_hashed(copy, monkeypatch):
    monkeypatch.setattr(completeness, "HASHED_AT_ONCE", 0)
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    check_whole(copy)
    contents = read_contents(copy, "you/model")
    hash_contents(contents)
    with pytest.raises(UserError, match=r"model\.safetensors is not as it was written"):
        check_hashes(copy, contents)


def test_what_a_publisher_edits_may_differ(copy):
    for name in ("README.md", "report.html", "measurements.json"):
        (copy / name).write_text((copy / name).read_text() + " \n")
    (copy / "pictures" / "layers.svg").write_text("<svg/>")
    write_files(copy, {"LICENSE": "MIT", "pictures/mine.png": b"png"})
    check_publishable(copy)
    (copy / "README.md").write_text((copy / "README.md").read_text() + "\n![A poem](pictures/a%20poem.png)\n")
    with pytest.raises(UserError, match=r"pictures/a poem\.png is missing"):
        check_publishable(copy)


def test_a_kernel_that_was_switched_on_and_off_again_changes_nothing(copy):
    enable_library(copy)
    with pytest.raises(UserError, match="enable-genai"):
        check_publishable(copy)
    disable_library(copy)
    check_publishable(copy)


def test_a_shard_that_the_index_names(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    write_files(folder, {"model.safetensors.index.json": json.dumps(index)})
    with pytest.raises(UserError, match=r"names model-00002-of-00002\.safetensors, which is missing"):
        check_publishable(folder)


def test_weights_of_a_folder_that_leaves_others_to_its_base(folder):
    (folder / "model.safetensors").rename(folder / "nm_parameters.safetensors")
    new = {"nm_parameters.safetensors": {"size": 40_000, "sha256": "0" * 64}}
    write_files(folder, {"config.json": json.dumps({"base_weights": {"new_files": new}})})
    with pytest.raises(UserError, match=r"nm_parameters\.safetensors is not as it was written"):
        check_publishable(folder)
    (folder / "nm_parameters.safetensors").unlink()
    with pytest.raises(UserError, match=r"nm_parameters\.safetensors is missing"):
        check_publishable(folder)


def test_a_saved_model_says_what_it_holds(exported, tmp_path):
    model, tokenizer, _ = load_exported(exported)
    saved = save(model, tmp_path / "saved", tokenizer)
    assert written_files(saved).keys() == {path.name for path in saved.iterdir()} - {STAGES_FILE}
    check_whole(saved)
    (saved / "onnx").mkdir()
    (saved / "onnx" / "model.onnx").write_bytes(b"graph")
    record_written(saved, "onnx", [saved / "onnx" / "model.onnx"])
    assert written_files(saved)["onnx/model.onnx"].size == 5
    (saved / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        check_whole(saved)


def test_what_is_written_again_is_known_as_it_is_now(tmp_path):
    write_files(tmp_path, {"a.json": "1", "model.safetensors": weights("a", 300), "README.md": "# A\n"})
    record_written(tmp_path, "save")
    assert written_files(tmp_path)["README.md"].sha256 is None
    write_files(tmp_path, {"a.json": "22"})
    record_written(tmp_path, "onnx", [tmp_path / "a.json"])
    assert written_files(tmp_path)["a.json"].size == 2
    assert "a.json" not in json.loads((tmp_path / STAGES_FILE).read_text())["stages"]["save"]["wrote"]


def test_nothing_is_sent_of_a_folder_that_has_changed(hub, folder, monkeypatch):
    monkeypatch.setattr(completeness, "HASHED_AT_ONCE", 0)
    record_written(folder, "write")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match=r"model\.safetensors is not as it was written"):
        pipeline.publish_folder(folder)
    assert not hub.repositories
    assert not hub.count("PUT", "/storage/")
