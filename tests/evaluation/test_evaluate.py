"""`evaluate` from folder to table, in PyTorch and ONNX Runtime."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from nm_export import pipeline
from nm_export.errors import UserError
from nm_export.evaluation import evaluate
from nm_export.evaluation.opening import open_model
from tests.tiny_folder import tiny_recipe, write_tiny_folder

SMALL = {"window": 32, "windows": 6}
BUILTIN = "builtin:python-docs"


@pytest.fixture(scope="module")
def results(exported):
    """The exported model on each backend, against its base."""
    return {
        backend: evaluate(exported, texts=[BUILTIN], backend=backend, batch_size=3, **SMALL)
        for backend in ("torch", "onnx")
    }


def test_the_base_model_is_found(results, tiny_source):
    result = results["torch"]
    assert result.dense["source"] == str(tiny_source)
    [text] = result.texts
    dense = evaluate(tiny_source, texts=[BUILTIN], **SMALL)
    assert dense.dense is None
    assert text.scores.dense_perplexity.value == pytest.approx(dense.texts[0].scores.perplexity.value, rel=1e-6)
    assert text.scores.kl.value > 0.01
    assert text.scores.ratio.value != pytest.approx(1.0, abs=1e-3)


def test_perplexity_is_the_one_of_the_written_model(results, exported):
    opened = open_model(exported)
    ids = torch.tensor(opened.tokenizer(_builtin_start())["input_ids"][: 6 * 32]).view(6, 32)
    with torch.no_grad():
        loss = opened.model(ids, labels=ids).loss
    assert results["torch"].texts[0].scores.perplexity.value == pytest.approx(float(loss.exp()), rel=1e-4)


def _builtin_start():
    from nm_export.calibration.documents import load_text
    from nm_export.recipe import TextSection

    return "\n\n".join(load_text(TextSection(dataset=BUILTIN, split="validation")))[:10000]


def test_onnx_runtime_gives_the_same_numbers_for_the_same_windows(results):
    one, other = results["torch"].texts[0], results["onnx"].texts[0]
    assert one.provenance == other.provenance
    assert other.scores.perplexity.value == pytest.approx(one.scores.perplexity.value, rel=1e-4)
    assert other.scores.kl.value == pytest.approx(one.scores.kl.value, rel=1e-3)
    assert other.scores.dense_perplexity == one.scores.dense_perplexity
    assert results["onnx"].model["backend"] == "onnx"


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_tasks(exported, tmp_path, backend):
    pytest.importorskip("lm_eval")
    rows = [{"goal": g, "sol1": "abc", "sol2": f"{g} xyz", "label": i % 2} for i, g in enumerate("abcdefgh")]
    (tmp_path / "piqa_valid_labeled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate(exported, tasks=["piqa_jsonl"], task_data=tmp_path, limit=5, backend=backend)
    assert result.texts == ()
    [task] = result.tasks
    assert (task.score.examples, task.dense.examples, task.available) == (5, 5, 8)
    reference = evaluate(exported, tasks=["piqa_jsonl"], task_data=tmp_path, limit=5)
    assert task.score.values == reference.tasks[0].score.values
    table = result.to_markdown()
    assert "piqa_jsonl 5 of 8 (seed 0)" in table
    dense = task.dense.metrics["acc"].value
    if dense:
        drop = 100 * (dense - task.score.metrics["acc"].value) / dense
        assert result.mean_relative_drop.value == pytest.approx(drop)
        assert "mean relative drop" in table


def test_the_report_can_be_written_and_read(results):
    result = results["torch"]
    numbers = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    [text] = numbers["texts"]
    assert text["text"] == BUILTIN
    assert (text["windows"], text["window"], text["scored_tokens"]) == (6, 32, 6 * 31)
    assert len(text["text_sha256"]) == 64
    table = result.to_markdown()
    assert table.startswith("| text")
    assert f"{text['perplexity']['value']:.3f} ± {text['perplexity']['stderr']:.3f}" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_what_is_written(exported, backend):
    result = evaluate(exported, texts=[BUILTIN], backend=backend, generate=6, **SMALL)
    [text] = json.loads(json.dumps(result.to_dict(), allow_nan=False))["texts"]
    written = text["generation"]
    assert (written["prompts"], written["prompt_tokens"], written["new_tokens"]) == (6, 16, 6)
    assert written == evaluate(exported, texts=[BUILTIN], generate=6, **SMALL).to_dict()["texts"][0]["generation"]
    table = result.to_markdown()
    assert f"| {written['perplexity']['value']:.3f} ± {written['perplexity']['stderr']:.3f} " in table
    assert "the first 16 tokens of 6 windows, continued by 6 tokens" in table


def test_several_texts(tiny_source, tmp_path):
    for name, words in (("a", "one two three "), ("b", "four five six ")):
        (tmp_path / f"{name}.txt").write_text(words * 20)
    texts = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), str(tmp_path)]
    result = evaluate(tiny_source, texts=texts, window=32)
    assert [text.name for text in result.texts] == texts
    assert len({text.scores.perplexity.value for text in result.texts}) == 3


def test_a_model_against_itself(tiny_source):
    scores = evaluate(tiny_source, against=tiny_source, texts=[BUILTIN], **SMALL).texts[0].scores
    assert (scores.kl.value, scores.top1_agreement.value, scores.ratio.value) == (0.0, 1.0, 1.0)


def test_without_its_base_a_model_is_measured_alone(exported, tmp_path, caplog):
    folder = shutil.copytree(exported, tmp_path / "copy")
    record = json.loads((folder / "nm_export.json").read_text())
    record["base_model"]["source"] = str(tmp_path / "a" / "b" / "gone")
    (folder / "nm_export.json").write_text(json.dumps(record))
    result = evaluate(folder, texts=[BUILTIN], **SMALL)
    assert result.dense is None
    assert result.texts[0].scores.kl is None
    assert "gone" in caplog.text
    assert "--against" in caplog.text


def test_a_non_causal_score_sees_one_window_at_a_time(tiny_source, tmp_path):
    folder = tmp_path / "noncausal"
    recipe = tiny_recipe(tiny_source, sparsity={"score": "clact_noncausal"}, verify={"enabled": False})
    pipeline.run(recipe, output_dir=folder, skip_onnx=True)
    one, four = (evaluate(folder, texts=[BUILTIN], batch_size=size, **SMALL).texts[0] for size in (1, 4))
    assert one.scores == four.scores


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"window": 500}, "longer than the context"),
        ({"generate": 500}, "half a window with what --generate adds is longer than the context"),
        ({"generate": 3}, "at least 4 tokens"),
        ({"backend": "onnx"}, "is no exported model"),
        ({"backend": "tpu"}, "no backend tpu"),
        ({"device": "nowhere"}, "'nowhere'"),
        ({"against": "/no/such/model"}, "/no/such/model"),
    ],
)
def test_mistakes(tiny_source, options, part):
    with pytest.raises(UserError) as caught:
        evaluate(tiny_source, texts=[BUILTIN], **{**SMALL, **options})
    assert part in str(caught.value)
    assert "model.source" not in str(caught.value)


def test_another_tokenizer_is_refused(tiny_source, tmp_path):
    other = write_tiny_folder(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="another tokenizer"):
        evaluate(tiny_source, against=other, texts=[BUILTIN], **SMALL)


def test_a_folder_that_transformers_saved_is_a_model(exported, tmp_path):
    """Without recipe.yaml and nm_export.json, as after a push from elsewhere."""
    folder = shutil.copytree(exported, tmp_path / "bare", ignore=shutil.ignore_patterns("*.yaml", "nm_export.json"))
    result = evaluate(folder, texts=[BUILTIN], **SMALL)
    assert result.dense is None
    assert result.model["kind"] == "exported"


def test_damaged_weights_are_a_sentence(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or incomplete"):
        evaluate(folder, texts=[BUILTIN], **SMALL)


def test_plain_folders_open_as_transformers_opens_them(tiny_source):
    expected = AutoModelForCausalLM.from_pretrained(tiny_source).state_dict()
    opened = open_model(tiny_source).model.state_dict()
    assert all(torch.equal(opened[name], tensor) for name, tensor in expected.items())
