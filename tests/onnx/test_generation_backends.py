"""`nm_export.generation.generate`: what lies beyond a model's positions is refused before anything is generated."""

import pytest
from transformers import OPTConfig

import nm_export
from nm_export.errors import UserError
from nm_export.generation import generate
from nm_export.tokenizer_files import load_tokenizer
from tests.onnx.tiny import SIZES, dense


@pytest.mark.parametrize(("backend", "room"), [("onnx", 126), ("genai", 125)])
def test_positions_of_graphs_end(publish, backend, room):
    folder = publish("llama", "weight_norm").folder
    message = rf"3 tokens and 127 more .* 128 positions: ask for at most {room} \(max_new_tokens\)"
    with pytest.raises(UserError, match=message):
        generate(folder, "!!#", backend=backend, max_new_tokens=127)
    assert generate(folder, "!!#", backend=backend, max_new_tokens=2)


def test_tables_of_positions_end_in_torch_and_angles_do_not(publish, monkeypatch):
    published = publish("llama", "weight_norm")
    tokenizer = load_tokenizer(published.folder / "onnx")
    config = OPTConfig(**SIZES, ffn_dim=80, word_embed_proj_dim=64)
    limited = nm_export.sparsify(dense(config=config), pattern="2:4", targets=["*.fc1"])
    monkeypatch.setattr("nm_export.generation.prepare", lambda model: None)
    for model in (limited, published.model):
        monkeypatch.setattr("nm_export.generation.load_exported", lambda folder, model=model: (model, tokenizer, None))
        if model is limited:
            with pytest.raises(UserError, match=r"128 positions: ask for at most 126 \(max_new_tokens\)"):
                generate(published.folder, "!!#", max_new_tokens=127)
        generate(published.folder, "!!#", max_new_tokens=126 if model is limited else 127)


@pytest.mark.parametrize("backend", ["torch", "onnx", "genai"])
def test_a_prompt_without_tokens_is_refused(publish, monkeypatch, backend):
    published = publish("llama", "weight_norm")
    tokenizer = load_tokenizer(published.folder / "onnx")
    monkeypatch.setattr("nm_export.generation.load_tokenizer", lambda folder: tokenizer)
    monkeypatch.setattr("nm_export.generation.load_exported", lambda folder: (published.model, tokenizer, None))
    assert tokenizer("")["input_ids"] == []
    with pytest.raises(UserError, match="the prompt '' has no tokens; give a text to continue"):
        generate(published.folder, "", backend=backend)
