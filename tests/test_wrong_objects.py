"""Public functions answer wrong objects and arguments without effect in one sentence."""

import logging

import pytest
import torch

import nm_export
from nm_export.errors import UserError
from nm_export.recipe import Recipe
from tests.tiny_models import dense_model, sparse_model, token_ids

IDS = token_ids()
DENSE = "and this LlamaForCausalLM is dense; sparsify it first"

CALLS = {
    "calibrate a dense model": (lambda: nm_export.calibrate(dense_model(), IDS), DENSE),
    "learn on a dense model": (lambda: nm_export.learn(dense_model(), IDS, mode="blockwise"), DENSE),
    "layers of a dense model": (lambda: nm_export.score_layers(dense_model(), IDS), DENSE),
    "export a dense model": (lambda: nm_export.export_onnx(dense_model(), ".", tokenizer_dir="."), DENSE),
    "verify a dense model": (lambda: nm_export.verify(".", dense_model(), IDS), DENSE),
    "verify a name": (
        lambda: nm_export.verify(".", "model", IDS),
        "in memory, not a str: open a folder with load_exported",
    ),
    "verify nowhere": (
        lambda: nm_export.verify("nowhere", sparse_model(), IDS),
        "nowhere .*a folder that nm-export wrote",
    ),
    "verify no folder": (lambda: nm_export.verify(None, sparse_model(), IDS), "the path of a folder, not None"),
    "calibrate None": (lambda: nm_export.calibrate(None, IDS), "in memory, not None"),
    "no batch": (lambda: nm_export.calibrate(sparse_model(), IDS, 0), "batch_size is 0; it is a whole number from 1"),
    "evaluate a model": (
        lambda: nm_export.evaluate(dense_model()),
        "model is a LlamaForCausalLM; it takes a folder or a name",
    ),
    "evaluate against a model": (
        lambda: nm_export.evaluate("x", against=dense_model()),
        "against is a LlamaForCausalLM",
    ),
    "a limit of nothing": (lambda: nm_export.evaluate("x", limit=3), "limit is about tasks; name some"),
    "a repository and no publication": (
        lambda: nm_export.run(Recipe(model={"source": "x"}), repo_id="a/b"),
        r"repo_id \(--repo-id\) is about publishing; give push_to_hub \(--push-to-hub\) too",
    ),
    "no window": (lambda: nm_export.evaluate("x", window=0), "window is 0"),
    "perplexity of a name": (lambda: nm_export.perplexity("gpt2", IDS), "not a str"),
    "perplexity of a class": (lambda: nm_export.perplexity(dict, IDS), "not a type"),
    "divergence of one": (lambda: nm_export.divergence(dense_model(), dense_model(), IDS), "further models by name"),
    "divergence of a name": (lambda: nm_export.divergence(dense_model(), {"a": "gpt2"}, IDS), "not a str"),
    "logits of a name": (
        lambda: nm_export.torch_logits("gpt2"),
        "torch_logits takes a causal language model, not a str",
    ),
    "load a model": (lambda: nm_export.load_exported(dense_model()), "the path of a folder, not a LlamaForCausalLM"),
    "load nothing": (lambda: nm_export.load_exported("nowhere"), "nowhere .*a folder that nm-export wrote"),
    "a recipe that is none": (lambda: nm_export.load_recipe(5), "the path of a recipe, not an int"),
    "run a number": (lambda: nm_export.run(5), "run takes a Recipe or the path of one, not an int"),
    "run nothing": (lambda: nm_export.run("nowhere.yaml"), "nowhere.yaml: there is no such recipe file"),
    "convert a model": (lambda: nm_export.convert(dense_model(), "x", "full"), "the path of a folder, not a Llama"),
    "convert to what": (lambda: nm_export.convert("x", "y", "half"), "weights is 'half'; it is full or reference"),
    "text without a section": (lambda: nm_export.token_sequences(None, {"num_samples": 3}), "a CalibrationSection"),
    "export nowhere": (
        lambda: nm_export.export_onnx(sparse_model(), "nowhere", tokenizer_dir="."),
        "nowhere is no folder",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_one_sentence(what, caplog):
    call, sentence = CALLS[what]
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match=sentence) as refused:
        call()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
    assert len(caplog.text) < 500


def test_what_verify_cannot_find_is_refused(tmp_path):
    model = sparse_model()
    folder = nm_export.save(model, tmp_path / "out")
    with pytest.raises(UserError, match=r"has no onnx/model\.onnx; export it with export_onnx, or pass onnx=False"):
        nm_export.verify(folder, model, IDS)
    with pytest.raises(UserError, match=r"divergence_factor is 0\.5; it is a number from 1"):
        nm_export.verify(folder, model, IDS, onnx=False, divergence_factor=0.5)


def test_the_tokenizers_folder_of_an_export_is_there(tmp_path):
    model = sparse_model()
    folder = nm_export.save(model, tmp_path / "out")
    with pytest.raises(UserError, match=r"tokenizer_dir \S+typo is no folder; give one with the tokenizer's files"):
        nm_export.export_onnx(model, folder, tokenizer_dir=tmp_path / "typo")


def test_an_adapter_around_a_sparse_model_is_merged_first(tmp_path):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(sparse_model(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for call in (
        lambda: nm_export.calibrate(adapted, IDS),
        lambda: nm_export.save(adapted, tmp_path / "out"),
        lambda: nm_export.learn(adapted, IDS, mode="end_to_end"),
        lambda: nm_export.score_layers(adapted, IDS),
        lambda: nm_export.export_onnx(adapted, tmp_path, tokenizer_dir=tmp_path),
    ):
        with pytest.raises(UserError, match=r"adapter that is not merged; pass model\.merge_and_unload\(\)"):
            call()


def test_models_wrap_themselves():
    model = dense_model()
    wrapped = nm_export.torch_logits(model)
    assert nm_export.perplexity(model, IDS) == nm_export.perplexity(wrapped, IDS)
    assert nm_export.divergence(model, {"other": sparse_model()}, IDS) == nm_export.divergence(
        wrapped, {"other": nm_export.torch_logits(sparse_model())}, IDS
    )
    with torch.inference_mode():
        assert nm_export.perplexity(lambda ids: model(ids).logits, IDS) == nm_export.perplexity(model, IDS)


def test_weights_that_stay_as_they_are_need_no_name(tmp_path):
    folder = nm_export.save(sparse_model(), tmp_path / "out")
    with pytest.raises(UserError, match="Say what is to change"):
        nm_export.convert(folder, tmp_path / "same")
    with pytest.raises(UserError, match="has no ONNX export that could be left out"):
        nm_export.convert(folder, tmp_path / "same", skip_onnx=True)
