"""Folders and GGUF files: what loads is exactly the model; what cannot be made sparse is refused in one sentence."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from nm_export.errors import UserError
from nm_export.recipe import ModelSection
from nm_export.sources import load_config_only, load_model


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(section: ModelSection) -> str:
    with pytest.raises(UserError) as caught:
        load_model(section)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder(tiny_folder: Path, tiny_model: LlamaForCausalLM) -> None:
    loaded = load_model(ModelSection(source=str(tiny_folder)))
    assert not loaded.model.training
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.tokenizer.decode(loaded.tokenizer("a b").input_ids) == "a b"
    weights = (tiny_folder / "model.safetensors").read_bytes()
    assert loaded.provenance["weights_sha256"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert loaded.provenance["dtype"] == "float32"
    json.dumps(loaded.provenance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes(tiny_folder: Path, tiny_model: LlamaForCausalLM, dtype: str) -> None:
    wanted = getattr(torch, dtype)
    assert load_model(ModelSection(source=str(tiny_folder), dtype=dtype)).model.dtype == wanted
    tiny_model.to(wanted).save_pretrained(tiny_folder)
    assert load_model(ModelSection(source=str(tiny_folder))).model.dtype == wanted, "auto keeps what is stored"


def test_a_sharded_folder_of_symbolic_links(tmp_path: Path, tiny_folder: Path, tiny_model: LlamaForCausalLM) -> None:
    (tiny_folder / "model.safetensors").unlink()
    tiny_model.save_pretrained(tiny_folder, max_shard_size="50KB")
    blobs, links = tmp_path / "blobs", tmp_path / "snapshots" / "c0ffee"  # as in the Hub's cache
    tiny_folder.rename(blobs)
    links.mkdir(parents=True)
    for file in blobs.iterdir():
        (links / file.name).symlink_to(f"../../blobs/{file.name}")
    loaded = load_model(ModelSection(source=str(links)))
    assert len(loaded.provenance["weights_sha256"]) > 1
    assert torch.equal(loaded.model.lm_head.weight, tiny_model.lm_head.weight)


def test_a_gguf_file(tmp_path: Path, tiny_gguf: Path, tiny_model: LlamaForCausalLM) -> None:
    loaded = load_model(ModelSection(source=str(tiny_gguf)))
    assert loaded.model.dtype == torch.float32
    for name, tensor in tiny_model.state_dict().items():
        # Q8_0 rounds to 1/127 of a block's largest weight, and the block's scale to half precision.
        tolerance = float(tensor.abs().max()) * (0.5 / 127 + 2**-11) if "down_proj" in name else 0.0
        torch.testing.assert_close(loaded.model.state_dict()[name], tensor, atol=tolerance, rtol=0)
    assert type(loaded.model.model.layers[0].mlp.down_proj) is torch.nn.Linear
    assert loaded.tokenizer.chat_template
    assert (loaded.tokenizer.bos_token_id, loaded.tokenizer.eos_token_id) == (256, 257)
    sentence = "a sentence, 12 ö\n"
    assert loaded.tokenizer.decode(loaded.tokenizer(sentence, add_special_tokens=False).input_ids) == sentence
    assert set(loaded.provenance["weights_sha256"]) == {"tiny.gguf"}

    assert "quantization" not in loaded.model.config.to_json_string()
    loaded.model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_config_only_reads_no_weights(tiny_folder: Path) -> None:
    (tiny_folder / "model.safetensors").unlink()
    assert load_config_only(ModelSection(source=str(tiny_folder))).num_hidden_layers == 2


def test_missing_tensors_are_named(tiny_folder: Path) -> None:
    file = tiny_folder / "model.safetensors"
    tensors = load_file(file)
    for layer in (0, 1):
        del tensors[f"model.layers.{layer}.mlp.up_proj.weight"], tensors[f"model.layers.{layer}.mlp.down_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    message = refusal(ModelSection(source=str(tiny_folder)))
    assert "lacks the tensors model.layers.0.mlp.down_proj.weight" in message
    assert "1 more" in message


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
def test_a_damaged_weight_file_is_named(tiny_folder: Path, keep: int) -> None:
    file = tiny_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file.resolve()} is damaged or incomplete" in refusal(ModelSection(source=str(tiny_folder)))


def test_a_missing_shard_is_said(tiny_folder: Path, tiny_model: LlamaForCausalLM) -> None:
    (tiny_folder / "model.safetensors").unlink()
    tiny_model.save_pretrained(tiny_folder, max_shard_size="50KB")
    shard = sorted(tiny_folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(ModelSection(source=str(tiny_folder)))


def test_wrong_shapes_are_said(tiny_folder: Path) -> None:
    edit_config(tiny_folder, intermediate_size=48)
    assert "cannot be loaded" in refusal(ModelSection(source=str(tiny_folder)))


def test_folders_that_lack_parts(tiny_folder: Path) -> None:
    section = ModelSection(source=str(tiny_folder))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tiny_folder / name).unlink()
    assert "tokenizer" in refusal(section)
    (tiny_folder / "model.safetensors").unlink()
    assert "has no weights" in refusal(section)
    (tiny_folder / "config.json").write_text("{")
    assert "config.json is not valid JSON" in refusal(section)
    (tiny_folder / "config.json").unlink()
    assert "has no config.json" in refusal(section)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized (gptq)"),
        ({"model_type": "gemma3"}, "multimodal (gemma3 with text_config"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "vit"}, "no causal language model"),
        ({"model_type": "no-such-model"}, "no-such-model"),
        ({"num_attention_heads": "many"}, "configuration"),
    ],
)
def test_models_that_cannot_be_made_sparse(tiny_folder: Path, changes: dict[str, Any], part: str) -> None:
    edit_config(tiny_folder, **changes)
    section = ModelSection(source=str(tiny_folder))
    assert part in refusal(section)
    with pytest.raises(UserError):
        load_config_only(section)


def test_code_of_a_model_does_not_run_unless_allowed(tiny_folder: Path) -> None:
    marker = tiny_folder.parent / "ran"
    (tiny_folder / "configuration_mine.py").write_text(
        f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
        "from transformers import LlamaConfig\nclass MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
    )
    edit_config(tiny_folder, model_type="mine", auto_map={"AutoConfig": "configuration_mine.MyConfig"})
    assert "trust_remote_code" in refusal(ModelSection(source=str(tiny_folder)))
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a gguf file at all, only words"])
def test_a_damaged_gguf_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert "bad.gguf" in refusal(ModelSection(source=str(path)))


def test_a_gguf_file_cut_short(tiny_gguf: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    content = tiny_gguf.read_bytes()
    tiny_gguf.write_bytes(content[: len(content) * 3 // 4])
    assert "tiny.gguf" in refusal(ModelSection(source=str(tiny_gguf)))
