"""Output layer and embedding: one weight or two, as the parameters are, whatever the configuration says."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nm_export.errors import UserError
from nm_export.publishing.save import save
from nm_export.recipe import ModelSection
from nm_export.sources import load_model
from nm_export.sparsification import sparsify
from tests.tiny_models import dense_model, token_ids


def set_flag(folder: Path, tied: bool) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": tied}))


def part(model):
    """Give a model that says that it is tied an output layer of its own."""
    assert model.config.tie_word_embeddings
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


def join(model):
    """Tie a model that says that it is not."""
    assert not model.config.tie_word_embeddings
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def test_a_checkpoint_with_an_output_layer_of_its_own_is_not_tied(tiny_folder, tiny_model):
    set_flag(tiny_folder, True)
    loaded = load_model(ModelSection(source=str(tiny_folder))).model
    assert torch.equal(loaded.lm_head.weight, tiny_model.lm_head.weight)
    assert loaded.config.tie_word_embeddings is False
    loaded.resize_token_embeddings(loaded.config.vocab_size)  # ties what the configuration says is tied
    assert torch.equal(loaded.lm_head.weight, tiny_model.lm_head.weight)


def test_an_untied_checkpoint_without_an_output_layer_is_refused_with_the_remedy(tiny_folder):
    file = tiny_folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the tensor lm_head.weight.*tie_word_embeddings") as caught:
        load_model(ModelSection(source=str(tiny_folder)))
    assert "\n" not in str(caught.value)
    set_flag(tiny_folder, True)
    model = load_model(ModelSection(source=str(tiny_folder))).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("change", [part, join])
def test_a_saved_model_reloads_as_tied_as_it_was(change, tmp_path):
    model = sparsify(change(dense_model("llama" if change is part else "qwen2")), pattern="8:16")
    expected = logits(model, token_ids())
    folder = save(model, tmp_path / "saved")
    again, report = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not report["missing_keys"]
    assert again.config.tie_word_embeddings is (change is join)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is (change is join)
    assert torch.equal(logits(again.eval(), token_ids()), expected)
