"""A card is the publisher's: terms, language, tags, lineage and text; and it promises no more than was measured."""

import json
import re
from dataclasses import replace
from importlib import metadata

import pytest
import yaml
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from nm_export import pipeline
from nm_export.card.facts import read_facts
from nm_export.card.markdown import card_markdown
from nm_export.card.own_text import read_own_text
from nm_export.dry_run import dry_run
from nm_export.errors import UserError
from nm_export.installation import how_to_install
from nm_export.recipe import Recipe, parse_recipe
from tests.card.test_card import benchmark, evaluation
from tests.tiny_folder import character_tokenizer, tiny_recipe, write_tiny_folder

OWN = {
    "license": "other",
    "license_name": "own-terms",
    "license_link": "https://example.org/own",
    "language": "de",
    "tags": ["poems"],
    "base_model": "Qwen/Qwen2-0.5B",
}


@pytest.fixture
def facts(exported):
    return read_facts(exported, name="poems", repository="you/poems")


def with_numbers(facts, **numbers):
    return card_markdown(replace(facts, numbers={**facts.numbers, **numbers}), {})


def with_source(facts, **source):
    base = {**facts.provenance["base_model"], **source}
    return replace(facts, provenance={**facts.provenance, "base_model": base})


def test_the_recipe_describes_the_model(facts):
    recipe = Recipe.from_dict({**facts.recipe.to_dict(), "publish": OWN})
    card = card_markdown(replace(facts, recipe=recipe), {})
    data = card.data
    assert (data.license, data.license_name, data.license_link) == ("other", "own-terms", "https://example.org/own")
    assert (data.language, data.base_model) == ("de", "Qwen/Qwen2-0.5B")
    assert data.tags == ["sparsity", "nm-sparsity", "activation-sparsity", "onnx", "poems"]
    assert "licence of this model: own-terms (https://example.org/own); of the base model: see there." in card.text
    assert "made from Qwen/Qwen2-0.5B" in card.text


def test_what_the_source_says_of_itself_is_taken_over(tiny_source, tmp_path):
    source = write_tiny_folder(tmp_path / "fine-tune")
    said = {"license": "mit", "language": ["de"], "tags": ["poems"], "base_model": "Qwen/Qwen2-0.5B"}
    said |= {"datasets": ["me/poems"], "pipeline_tag": "text-generation"}
    (source / "README.md").write_text(f"---\n{yaml.safe_dump(said)}---\n\n# Poems\n")
    recipe = tiny_recipe(source, evaluation={"enabled": False}, verify={"enabled": False})
    folder = pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True).folder
    data = card_markdown(read_facts(folder, name="out", repository="out"), {}).data
    assert (data.license, data.language, data.base_model) == ("mit", "de", "Qwen/Qwen2-0.5B")
    assert (data.datasets, data.pipeline_tag) == (["me/poems"], "text-generation")
    assert data.tags == ["sparsity", "nm-sparsity", "activation-sparsity", "poems"]


def test_a_recipe_says_more_than_the_source(facts):
    facts = with_source(facts, license="mit", card={"language": ["en"], "tags": ["prose"], "base_model": ["a/b"]})
    assert card_markdown(facts, {}).data.base_model == "a/b"
    recipe = Recipe.from_dict({**facts.recipe.to_dict(), "publish": {**OWN, "tags": []}})
    data = card_markdown(replace(facts, recipe=recipe), {}).data
    assert (data.language, data.base_model, data.license) == ("de", "Qwen/Qwen2-0.5B", "other")
    assert "prose" not in data.tags


@pytest.mark.parametrize(
    ("publish", "message"),
    [
        (
            "{license: My Own}",
            "publish.license: 'My Own' is not the Hub's identifier of a licence",
        ),
        ("{license: mit, license_name: x}", "publish: license_name and license_link are for license: other"),
        ("{language: German}", "publish.language: 'German' is not the code of a language"),
        ("{tags: [[a]]}", "publish.tags"),
        ("{base_model: qwen}", "publish.base_model: 'qwen' is not a model of the Hub; write user/name"),
        ("{card_text: /etc/passwd}", "is not inside of the working directory"),
        ("{card_text: ../a.md}", "is not inside of the working directory"),
        ("{card_text: id_rsa}", r"'id_rsa' is not a Markdown file \(.md\)"),
    ],
)
def test_what_the_hub_would_not_understand_is_refused_with_the_recipe(publish, message):
    with pytest.raises(UserError, match=message):
        parse_recipe(f"model: {{source: a/b}}\npublish: {publish}\n")


def test_words_that_yaml_takes_for_something_else():
    assert parse_recipe("model: {source: a/b}\npublish: {language: no, tags: [1]}").publish.language == ("no",)


def test_the_publishers_own_text(tiny_source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "about.md").write_text("## About\n\nPoems, *sparse*.\n", encoding="utf-8-sig")
    recipe = tiny_recipe(tiny_source, publish={"card_text": "about.md"}, evaluation={"enabled": False})
    recipe = recipe.model_copy(update={"verify": recipe.verify.model_copy(update={"enabled": False})})
    folder = pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True).folder
    for name, text in (
        ("README.md", "\n## About\n\nPoems, *sparse*.\n"),
        ("report.html", "<p>Poems, <em>sparse</em>."),
    ):
        assert (folder / name).read_text().count(text) == 1
    (tmp_path / "about.md").write_text("Others.\n")
    pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True, overwrite=True)
    assert "Poems" not in (folder / "README.md").read_text()
    assert (folder / "README.md").read_text().count("Others.") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"about\.md cannot be read \(No such file or directory; looked from"),
        (b"\xff", r"about\.md is not a UTF-8 text file"),
        (b"---\nlicense: mit\n---\n", r"about\.md begins with metadata; remove them, and give publish\.license"),
        (b"<!-- nm_export:begin a b -->", "holds marks of nm-export"),
        ("link", "leads out of the folder"),
    ],
)
@pytest.mark.parametrize("door", [pipeline.run, dry_run])
def test_a_text_that_cannot_be_taken_is_said_before_any_work(
    door, content, message, tiny_source, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if content == "link":
        (tmp_path / "secret").write_text("secret")
        (tmp_path / "here" / "about.md").symlink_to(tmp_path / "secret")
    elif content is not None:
        (tmp_path / "here" / "about.md").write_bytes(content)
    with pytest.raises(UserError, match=message):
        door(tiny_recipe(tiny_source, publish={"card_text": "about.md"}), output_dir=tmp_path / "out")
    assert read_own_text(None) is None


@pytest.mark.parametrize(
    ("decode", "words"),
    [
        ((0.05, 0.04), "; decoding is 1.25 times as fast."),
        ((0.04, 0.05), "; decoding is slower, 0.80 times the dense model's speed."),
    ],
)
def test_speed_in_the_first_words(decode, words, facts, exported):
    measured = benchmark(exported)
    measured["rows"][0] |= {"dense_decode": decode[0], "sparse_decode": decode[1]}
    assert words in with_numbers(facts, speed=[measured]).text
    busy = with_numbers(facts, speed=[{**measured, "load": 3.0}]).text
    assert "decoding is" not in busy
    assert busy.index("**The machine was busy**") < busy.index("| tokens per second |")


def test_what_is_slower_is_called_slower(facts, exported):
    measured = benchmark(exported)
    measured["rows"][0] |= {"dense_prefill": 0.22, "sparse_prefill": 0.25}
    text = with_numbers(facts, speed=[measured]).text
    expected = "prefill, onnxruntime-genai, prompt of 64 (0.88 times the dense model's speed)"
    assert f"**Slower than the dense model**: {expected}." in text
    mixed = {**measured, "rows": [*measured["rows"], {**measured["rows"][0], "sparse_decode": 0.1}]}
    assert "slower in some cases and faster in others, 0.50 to 1.25 times" in with_numbers(facts, speed=[mixed]).text


def test_rows_of_one_text_tell_how_much_of_it_was_read(facts, exported):
    again = evaluation(exported, tasks=[])
    again["model"]["backend"] = "torch"
    again["texts"][0]["text"] = "builtin:python-docs"
    text = with_numbers(facts, evaluations=[again]).text
    assert re.search(r"\| builtin:python-docs \| 4 x 32, spread over it \| PyTorch \|", text)
    assert re.search(r"\| builtin:python-docs \| 4 x 512, from its start \| PyTorch \|", text)
    assert "Perplexity on builtin:python-docs is 31.25 ± 1.50, the dense model's 25.00 ± 1.25." in text


def test_common_greedy_tokens_are_left_to_the_measurements(facts):
    assert "greedy_agreement" in json.dumps(facts.numbers)
    assert "Greedy tokens" not in card_markdown(facts, {}).text


def test_what_runs_without_the_package_is_called_slow_and_its_padding_named(facts):
    text = card_markdown(facts, {}).text
    assert "more slowly than the dense model. `nm-export enable-genai FOLDER`" in text
    assert "pads batches on the right. With padding on the left it computes wrong numbers" in text


@pytest.mark.parametrize("url", [None, "https://example.org/nm_export"])
def test_the_installation_line_needs_no_package_index(url, facts, monkeypatch):
    entries = metadata.metadata("nm_export")
    monkeypatch.setattr(entries.__class__, "get_all", lambda *_: [f"Repository, {url}"] if url else None)
    text = card_markdown(facts, {}).text
    if url:
        assert f'`pip install "nm_export[onnx] @ git+{url}"` ([nm_export]({url}))' in text
    else:
        assert '`pip install ".[genai]"` in the source folder of nm_export' in text
    assert 'pip install "nm_export[onnx]"`' not in text
    assert how_to_install("onnx") in text


def test_all_programs_start_with_the_same_tokens(tmp_path, monkeypatch):
    """A tokenizer that puts a token in front of every text."""
    source = write_tiny_folder(tmp_path / "source")
    tokenizer = character_tokenizer()
    begins = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 96)])
    tokenizer.backend_tokenizer.post_processor = begins
    tokenizer.save_pretrained(source)
    recipe = tiny_recipe(source, evaluation={"enabled": False}, verify={"enabled": False})
    folder = pipeline.run(recipe, output_dir=tmp_path / "out").folder
    monkeypatch.chdir(tmp_path)
    blocks = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    names = {}
    exec(next(block for block in blocks if "onnxruntime_genai" in block), names)
    expected = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("Once upon a time")["input_ids"]
    assert expected[0] == 96
    assert list(names["generator"].get_sequence(0))[: len(expected)] == expected
