"""The interface of optimum-onnx's ORTModelForCausalLM, and what transformers' pipelines ask of a model."""

import json
import logging
import shutil

import onnxruntime_genai
import pytest
import torch
from transformers import AutoTokenizer, pipeline
from transformers.utils import logging as transformers_logging

from nm_export.errors import UserError
from nm_export.onnx import NMSparseORTModelForCausalLM, build_dense_twin
from tests.onnx.test_genai import generated
from tests.onnx.test_modeling_ort import LONG, load

CPU = "CPUExecutionProvider"


@pytest.fixture
def published(publish):
    return publish("llama", "weight_norm")


def test_attributes_of_optimum_are_there(published):
    model = load(published)
    assert model.session is model.model
    assert (model.providers, model.provider, model.provider_options) == ([CPU], CPU, {CPU: {}})
    assert model.path == published.result.model_path
    assert model.model_save_dir == published.folder / "onnx"
    assert model.name_or_path == str(published.folder)
    assert (model.use_io_binding, model.can_use_cache, model.training) == (True, True, False)
    assert list(model.input_names)[:2] == ["input_ids", "attention_mask"]
    assert model.output_names["logits"] == 0


def test_methods_of_torch_modules_change_nothing_or_are_refused(published):
    model = load(published)
    for same in (model.to("cpu"), model.to(torch.float32), model.to(device=-1, dtype=None), model.eval(), model.cpu()):
        assert same is model
    assert model.float() is model.train(False) is model.requires_grad_(False)
    for refused in (lambda: model.to("cuda"), model.cuda, model.half, model.bfloat16, model.train):
        with pytest.raises(UserError, match=r"on the CPU, not on cuda|computes in float32|is not trained"):
            refused()
    with pytest.raises(UserError, match="build_dense_twin"):
        model.set_sparsity(False)
    model.set_sparsity(True)


@pytest.mark.parametrize(
    "arguments",
    [
        {"trust_remote_code": True},
        {"provider": CPU, "provider_options": {}},
        {"providers": [(CPU, {})]},
        {"use_io_binding": True},
        {"file_name": "model.onnx"},
        {"export": False},
        {"force_download": True},
        {"device_map": "auto", "dtype": "auto"},
        {"device_map": {"": "cpu"}, "dtype": torch.float32},
        {"subfolder": ""},
    ],
    ids=str,
)
def test_arguments_of_optimum_are_taken(published, arguments):
    assert torch.equal(load(published, **arguments)(LONG).logits, load(published)(LONG).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"export": True}, "export=True"),
        ({"use_io_binding": False}, "use_io_binding=False"),
        ({"device_map": "cuda"}, "on the CPU, not on cuda"),
        ({"dtype": torch.float16}, "float32, not float16"),
        ({"provider": "CUDAExecutionProvider"}, "not in this build"),
        ({"provider": CPU, "providers": [CPU]}, "provider or providers, not both"),
        ({"file_name": "other.onnx"}, r"other\.onnx does not exist"),
    ],
)
def test_arguments_that_cannot_be_met_are_refused(published, arguments, message):
    with pytest.raises(UserError, match=message):
        load(published, **arguments)


def test_configuration_cache_and_generation_options_are_heard(published, tmp_path):
    model = load(published, use_cache=False)
    assert model(LONG).past_key_values is None
    assert model(LONG, use_cache=True).past_key_values is not None
    assert not model.generation_config.use_cache
    options = load(published).generation_config
    options.max_new_tokens = 3
    assert load(published, generation_config=options).generate(LONG).shape == (1, 8)
    config = json.loads((published.folder / "config.json").read_text())
    config["base_config"]["max_position_embeddings"] = 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    for given in (tmp_path, load(published, config=tmp_path).config):
        with pytest.raises(UserError, match="5 tokens; the model has 4 positions"):
            load(published, config=given)(LONG)


def test_the_graphs_folder_is_taken_for_the_model(published, monkeypatch):
    expected = load(published)(LONG).logits
    onnx = published.folder / "onnx"
    assert torch.equal(NMSparseORTModelForCausalLM.from_pretrained(onnx, library=False)(LONG).logits, expected)
    monkeypatch.chdir(onnx)
    model = NMSparseORTModelForCausalLM.from_pretrained(".", library=False)
    assert torch.equal(model(LONG).logits, expected)


def test_a_copy_has_what_is_served_and_loads_everywhere(published, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(published.folder, source)
    for name in ("README.md", "nm_export.json", "picture.svg", "chat_template.jinja"):
        (source / name).write_text("{}")
    model = NMSparseORTModelForCausalLM.from_pretrained(source, library=False)
    model.save_pretrained(tmp_path / "copy")
    copied = {path.name for path in (tmp_path / "copy").iterdir()}
    assert {"onnx", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} < copied
    assert not copied & {"model.safetensors", "README.md", "nm_export.json", "picture.svg"}
    again = NMSparseORTModelForCausalLM.from_pretrained(tmp_path / "copy", library=False)
    assert torch.equal(again(LONG).logits, model(LONG).logits)
    assert len(generated(onnxruntime_genai.Model(str(tmp_path / "copy" / "onnx")))) == 20
    AutoTokenizer.from_pretrained(tmp_path / "copy", trust_remote_code=True)
    model.save_pretrained(tmp_path / "all", everything=True)
    assert {path.name for path in (tmp_path / "all").iterdir()} == {path.name for path in source.iterdir()}
    with pytest.raises(UserError, match="is a file"):
        model.save_pretrained(source / "README.md")


def test_a_copy_is_uploaded_with_its_folders(published, tmp_path, monkeypatch):
    sent = {}
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, repo, **options: sent.update(repo=repo))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **options: sent.update(options) or Commit)

    class Commit:
        commit_url = "address"

    assert load(published).save_pretrained(tmp_path / "c", push_to_hub=True, repository_id="you/name") == "address"
    assert sent == {"repo": "you/name", "repo_id": "you/name", "folder_path": tmp_path / "c"}


def test_pipelines_know_the_class_and_batches_give_what_texts_give_alone(published, caplog):
    model, tokenizer = load(published), AutoTokenizer.from_pretrained(published.folder / "onnx")
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
        options = {"do_sample": False, "max_new_tokens": 8, "return_full_text": False}
        together = pipe(["!!#", "abcdefg"], batch_size=2, **options)
    transformers_logging.disable_propagation()
    assert "is not supported for" not in caplog.text
    assert together == [pipe(text, **options) for text in ("!!#", "abcdefg")]


def test_saved_tokenizers_pad_on_the_left(published):
    assert AutoTokenizer.from_pretrained(published.folder / "onnx").padding_side == "left"


def test_a_dense_graph_to_compare_with_is_written(published, tmp_path):
    twin = build_dense_twin(published.model, published.folder, tmp_path / "dense")
    model = NMSparseORTModelForCausalLM.from_pretrained(twin)
    with published.model.dense(), torch.no_grad():
        torch.testing.assert_close(model(LONG).logits, published.model(LONG).logits, rtol=1e-3, atol=1e-3)
