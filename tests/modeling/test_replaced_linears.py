"""Linears that others replace: a model that should prune and does not says so; adapters around linears are welcome."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from nm_export.modeling import NMSparseForCausalLM
from tests.tiny_models import dense_model, sparse_model, token_ids

NAME = "model.layers.0.mlp.down_proj"
MESSAGE = rf"{NAME} is a Int8Linear, and 14 of 14 linears that should prune do not"


class Int8Linear(nn.Linear):
    """What quantizers put in the place of every linear."""


def quantize(model):
    """Replace linears as quantizers of transformers do: every `nn.Linear` but the head, subclasses too."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            replacement = Int8Linear(module.in_features, module.out_features, bias=module.bias is not None)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, replacement)


def logits(model):
    with torch.no_grad():
        return model(input_ids=token_ids()).logits


@pytest.fixture
def published(tmp_path):
    sparse_model().save_pretrained(tmp_path)
    return tmp_path


def test_loading_with_a_quantizer_that_replaces_linears_is_refused(published, monkeypatch):
    for auto in (AutoModelForCausalLM, AutoModel):
        model = auto.from_pretrained(published, trust_remote_code=True)
        monkeypatch.setattr(type(model), "_initialize_missing_keys", lambda self, *_: quantize(self), raising=True)
        with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj is a Int8Linear, and 14 of 14"):
            auto.from_pretrained(published, trust_remote_code=True)
        monkeypatch.undo()


@pytest.mark.parametrize("ran", [False, True], ids=["never run", "run before"])
def test_a_model_whose_linears_were_replaced_does_not_run_dense(ran):
    model = sparse_model()
    if ran:
        logits(model)
    quantize(model)
    for call in (model, model.forward):
        with pytest.raises(ValueError, match="should prune do not"), torch.no_grad():
            call(input_ids=token_ids())
    logits(model.to_dense())  # asked for


def test_one_replaced_linear_is_enough():
    model = sparse_model()
    logits(model)
    model.model.layers[0].mlp.down_proj = nn.Linear(64, 32, bias=False)
    with pytest.raises(ValueError, match=rf"{NAME} is a Linear, and 1 of 14 linears.*modules_to_not_convert"):
        logits(model)


def test_adapters_may_wrap_linears_and_leave_again():
    model = sparse_model()
    expected = logits(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    assert torch.equal(logits(adapted), expected)
    assert torch.equal(logits(adapted.unload()), expected)


def test_a_model_with_an_adapter_is_not_made_sparse():
    sparsity = sparse_model().config.sparsity
    adapted = dense_model()
    adapted.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"q_proj holds an adapter that is not merged; merge it"):
        NMSparseForCausalLM.from_dense(adapted, sparsity)
