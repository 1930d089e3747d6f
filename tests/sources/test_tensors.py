"""Every tensor of a checkpoint has a place in the model, or is named; and every place has a tensor."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from nm_export.errors import UserError
from nm_export.recipe import ModelSection
from nm_export.sources import load_model
from tests.sources.conftest import write_gguf


def put(folder: Path, **changes: torch.Tensor | None) -> None:
    """Put tensors into a checkpoint, or take them out; `__` stands for a point."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in changes.items():
        tensors[name.replace("__", ".")] = tensor
    save_file({name: t for name, t in tensors.items() if t is not None}, file, metadata={"format": "pt"})


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(ModelSection(source=str(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_biases_without_a_place_are_refused(tiny_folder):
    put(tiny_folder, **{f"model__layers__{n}__self_attn__q_proj__bias": torch.ones(32) for n in range(2)})
    message = refusal(tiny_folder)
    assert "model.layers.0.self_attn.q_proj.bias, model.layers.1.self_attn.q_proj.bias, for which" in message
    assert "attention_bias is false" in message


def test_layers_beyond_the_configurations_are_refused(tiny_folder):
    edit_config(tiny_folder, num_hidden_layers=1)
    message = refusal(tiny_folder)
    assert "model.layers.1." in message
    assert "more" in message
    assert "num_hidden_layers is 1" in message


def test_a_further_head_is_refused(tiny_folder):
    put(tiny_folder, v_head__weight=torch.ones(1, 32))
    assert "v_head.weight, for which its configuration has no place:" in refusal(tiny_folder)


def test_tables_that_older_versions_stored_are_nothing_to_talk_about(tiny_folder, capfd):
    put(tiny_folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4), model__masked_bias=torch.ones(1))
    load_model(ModelSection(source=str(tiny_folder)))
    assert "Left out" not in capfd.readouterr().err


def test_parts_for_images_are_left_out_in_a_sentence(tiny_folder, capfd):
    put(tiny_folder, vision_tower__layer__weight=torch.ones(4, 4), mtp__fc__weight=torch.ones(4, 4))
    load_model(ModelSection(source=str(tiny_folder)))
    said = " ".join(capfd.readouterr().err.split())
    assert "mtp.fc.weight, vision_tower.layer.weight, which its language model computes without." in said


def test_layers_that_predict_further_tokens_are_left_out_in_a_sentence(tiny_folder, capfd):
    edit_config(tiny_folder, num_nextn_predict_layers=1)
    put(tiny_folder, model__layers__2__eh_proj__weight=torch.ones(4, 4))
    load_model(ModelSection(source=str(tiny_folder)))
    assert "model.layers.2.eh_proj.weight, which its" in " ".join(capfd.readouterr().err.split())
    put(tiny_folder, model__layers__3__eh_proj__weight=torch.ones(4, 4))
    assert "model.layers.3.eh_proj.weight, for which" in refusal(tiny_folder)


def test_weights_that_a_model_class_ignores_are_left_out_in_a_sentence(tiny_folder, tiny_tokenizer, capfd):
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=2,
        num_experts_per_tok=1,
        n_group=1,
        topk_group=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        first_k_dense_replace=1,
        tie_word_embeddings=False,
    )
    DeepseekV3ForCausalLM(config).save_pretrained(tiny_folder)
    put(tiny_folder, model__layers__61__eh_proj__weight=torch.ones(4, 4))
    load_model(ModelSection(source=str(tiny_folder)))
    assert "model.layers.61.eh_proj.weight, which its" in " ".join(capfd.readouterr().err.split())


def test_causal_masks_of_old_checkpoints_are_nothing_to_talk_about(tiny_folder, capfd):
    config = GPTNeoXConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    GPTNeoXForCausalLM(config).save_pretrained(tiny_folder)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    put(tiny_folder, gpt_neox__layers__0__attention__bias=mask)
    put(tiny_folder, gpt_neox__layers__0__attention__masked_bias=torch.tensor(-1e9))
    load_model(ModelSection(source=str(tiny_folder)))
    assert "Left out" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.7.attn_q.bias"])
def test_tensors_of_a_gguf_file_that_the_model_has_no_place_for_are_refused(name, tmp_path, tiny_model):
    path = write_gguf(tmp_path / "more.gguf", tiny_model, {name: np.ones(32, np.float32)})
    assert f"{name}, for which its configuration has no place" in refusal(path)


def test_angles_that_a_gguf_file_scales_are_refused(tmp_path, tiny_model):
    plain = write_gguf(tmp_path / "ones.gguf", tiny_model, {"rope_freqs.weight": np.ones(4, np.float32)})
    assert torch.equal(load_model(ModelSection(source=str(plain))).model.lm_head.weight, tiny_model.lm_head.weight)
    scaled = write_gguf(tmp_path / "scaled.gguf", tiny_model, {"rope_freqs.weight": np.full(4, 2, np.float32)})
    assert "rope_freqs.weight, which transformers does not read" in refusal(scaled)
