"""Models whose tokens see later ones are refused, by their configuration or by what they compute."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, Gemma3TextConfig, GPT2Config, XLMConfig, XLNetConfig

from nm_export.causality import check_causal
from nm_export.errors import UserError
from nm_export.evaluation.opening import open_model
from nm_export.recipe import ModelSection
from nm_export.sources import load_config_only, load_model
from nm_export.sparsification import sparsify
from tests.tiny_models import ARCHITECTURES, dense_model

SIZES = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS = {"vocab_size": 259, "hidden_size": 32, "n_layers": 2, "n_layer": 2, "n_heads": 2, "n_head": 2}


def random_model(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BertConfig(**SIZES, intermediate_size=64), "is an encoder (bert, is_decoder is false)"),
        (
            Gemma3TextConfig(
                **SIZES,
                intermediate_size=64,
                head_dim=16,
                num_key_value_heads=2,
                sliding_window=8,
                use_bidirectional_attention=True,
            ),
            "lets tokens see later ones (use_bidirectional_attention is True)",
        ),
    ],
)
def test_a_configuration_that_says_so_is_enough(config, reason, tiny_folder):
    random_model(config).save_pretrained(tiny_folder)
    (tiny_folder / "model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        load_config_only(ModelSection(source=str(tiny_folder)))
    assert reason in str(caught.value)


@pytest.mark.parametrize("config", [XLMConfig(**OTHERS), XLNetConfig(**OTHERS, d_inner=64, d_head=16)])
def test_what_a_model_computes_tells_as_well(config, tiny_folder):
    model = random_model(config)
    with pytest.raises(UserError, match="predicts tokens from later ones"):
        check_causal(model, "it")
    model.save_pretrained(tiny_folder)
    with pytest.raises(UserError, match="predicts tokens from later ones"):
        open_model(tiny_folder)


def test_sparsify_asks():
    with pytest.raises(UserError, match="XLMWithLMHeadModel predicts tokens from later ones"):
        sparsify(random_model(XLMConfig(**OTHERS)), pattern="8:16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoders_pass(architecture, dtype):
    check_causal(dense_model(architecture).to(dtype), architecture)


def test_a_bert_that_is_a_decoder_passes(tiny_folder):
    random_model(BertConfig(**SIZES, intermediate_size=64, is_decoder=True)).save_pretrained(tiny_folder)
    check_causal(load_model(ModelSection(source=str(tiny_folder))).model, "it")


def test_dropout_is_no_look_ahead():
    model = random_model(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=4)).train()
    check_causal(model, "it")
    assert all(module.training for module in model.modules())
