"""The card of an export: what it says is what was measured, and what it tells to run runs."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import nm_export.modeling
from nm_export.card import refresh_card
from nm_export.card.facts import read_facts
from nm_export.card.markdown import card_markdown
from nm_export.card.naming import renamed
from nm_export.card.report import report_html
from nm_export.cli import app
from nm_export.errors import UserError


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """A copy of the exported folder that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / exported.name))


@pytest.fixture(scope="module")
def card(exported) -> ModelCard:
    return ModelCard.load(exported / "README.md")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def measurements(folder):
    return json.loads((folder / "measurements.json").read_text())


def evaluation(folder, **changes):
    """What `nm-export evaluate --json` writes, as far as a card reads it."""
    record = json.loads((folder / "nm_export.json").read_text())
    model = {"source": "/home/me/model", "backend": "onnx", **{k: record[k] for k in ("recipe_sha256", "base_model")}}
    value = {"value": 0.5, "stderr": 0.01}
    text = {"text": "/home/me/wiki.txt", "split": "all", "windows": 4, "window": 512, "text_sha256": "ab" * 32}
    text |= {"perplexity": {"value": 31.25, "stderr": 1.5}, "dense_perplexity": {"value": 25.0, "stderr": 1.25}}
    text |= {"ratio": {"value": 1.25, "stderr": 0.02}, "kl": value, "top1_agreement": value}
    text["generation"] = {"prompts": 4, "prompt_tokens": 256, "new_tokens": 64, "repeated": value} | {
        "dense_repeated": {"value": 0.25, "stderr": None},
        "shared_tokens": {"value": 3.5, "stderr": 0.5},
        "perplexity": {"value": 3.0, "stderr": 0.125},
        "dense_perplexity": {"value": 2.0, "stderr": 0.25},
    }
    task = {"task": "piqa", "metrics": {"acc": value, "acc_norm": value}, "main": "acc", "num_fewshot": 0}
    task |= {"examples": 200, "available": 1838, "dense_metrics": {"acc": {"value": 0.625, "stderr": 0.01}}}
    task["dense_metrics"]["acc_norm"] = task["dense_metrics"]["acc"]
    task["relative_drop_percent"] = {"value": 20.0, "stderr": 2.0}
    result = {"model": model, "dense": {"source": "/home/me/base"}, "texts": [text], "tasks": [task]}
    return {**result, "limit": 200, "seed": 0, "versions": {}, **changes}


def benchmark(folder, **changes):
    """What `nm-export bench --json` writes."""
    row = {"runtime": "onnxruntime-genai", "prompt": 64, "dense_prefill": 0.5, "sparse_prefill": 0.25}
    row |= {"dense_decode": 0.05, "sparse_decode": 0.04}
    recipe = json.loads((folder / "nm_export.json").read_text())["recipe_sha256"]
    result = {"kind": "model", "title": "x", "precision": "fp32", "rows": [row], "repeats": 5, "new_tokens": 24}
    return {**result, "machine": "A processor, 2 cores", "command": "", "recipe_sha256": recipe, **changes}


def as_file(path, content):
    path.write_text(json.dumps(content))
    return path


def test_metadata_for_the_hub(card, exported):
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("transformers", "text-generation", exported.name)
    assert "onnx" in data.tags
    assert len(data.eval_results) == 1
    result, measured = data.eval_results[0], measurements(exported)["perplexity"]
    assert (result.metric_type, result.metric_value) == ("perplexity", pytest.approx(measured["sparse"], abs=1e-4))
    assert f"dense model {measured['dense']:.3f}" in result.metric_name
    assert (result.dataset_name, result.dataset_split) == ("builtin:python-docs", "validation")


def test_base_model_and_licence(folder):
    record = json.loads((folder / "nm_export.json").read_text())
    record["base_model"] |= {"base_model": "some/base", "license": "other", "license_name": "own-terms"}
    (folder / "nm_export.json").write_text(json.dumps(record))
    refresh_card(folder)
    card = ModelCard.load(folder / "README.md")
    assert (card.data.base_model, card.data.license, card.data.license_name) == ("some/base", "other", "own-terms")
    assert "[some/base](https://huggingface.co/some/base)" in card.text
    assert "licence: own-terms" in card.text


def test_every_number_stands_beside_the_dense_one(card, exported):
    numbers = measurements(exported)
    quality, report = numbers["perplexity"], numbers["verification"]
    cells = f"{quality['dense']:.3f} | {quality['sparse']:.3f} | {quality['ratio']:.3f} |"
    assert f"| builtin:python-docs | 4 x 32, spread over it | PyTorch | {cells}" in card.text
    floor = report["floor"]
    assert f"| {floor['kl']:.4f} | {floor['top1_agreement']:.1%} |" in card.text
    assert "| equal in 13 of 13 layers |" in card.text
    energies = {
        name: score["retained_energy"] for name, score in numbers["layers"]["modules"].items() if "down_proj" in name
    }
    worst = min(energies, key=energies.get)
    assert f"{energies[worst]:.1%} (layer {worst.split('.')[2]})" in card.text
    assert numbers["layers"]["text"] in card.text


def test_what_was_done(card):
    assert "2 k_proj | 2:4 | weight_norm | dynamic_mean | yes | as they are | both |" in card.text
    assert "weight_norm ^ 2.0" in card.text
    assert "13 of the decoder's 14 linear layers" in card.text
    assert "Dense as before: 1 o_proj, the embeddings and the output layer." in card.text


def test_the_recipe_makes_the_same_again(card, exported):
    shown = yaml.safe_load(re.search("```yaml\n(.*?)```", card.text, re.DOTALL)[1])
    recipe = read_facts(exported, name="", repository="").recipe
    shown["model"]["source"] = recipe.model.source  # of which the card tells the last part only
    shown["evaluation"]["dataset"] = recipe.evaluation.dataset
    assert type(recipe).from_dict(shown) == recipe


def test_code_is_that_of_the_package(card):
    files = re.findall(r"\| `(\w+\.py)` \| `(\w{64})` \|", card.text)
    assert {"modeling_nm_sparse.py", "configuration_nm_sparse.py"} <= {name for name, _ in files}
    for name, digest in files:
        source = Path(nm_export.modeling.__file__).with_name(name)
        assert digest == hashlib.sha256(source.read_bytes()).hexdigest()


def test_code_of_the_card_runs(card, exported, monkeypatch, capsys):
    monkeypatch.chdir(exported.parent)
    blocks = re.findall("```python\n(.*?)```", card.text, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block.replace("max_new_tokens=32", "max_new_tokens=4"), {})
        assert capsys.readouterr().out.strip()


def test_no_path_of_this_machine(exported, tiny_source):
    for name in ("README.md", "report.html"):
        assert str(tiny_source.parent) not in (exported / name).read_text()


def test_pictures_are_there_and_nothing_else_is_asked_for(card, exported):
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", card.text)
    assert shown == ["pictures/quality.svg", "pictures/layers.svg"]
    assert sorted(f"pictures/{path.name}" for path in (exported / "pictures").iterdir()) == sorted(shown)
    page = (exported / "report.html").read_text()
    assert "<script" not in page
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert len([source for source in sources if source.startswith("data:image/svg+xml;base64,")]) == 2 * len(shown)
    assert {source for source in sources if not source.startswith("data:")} == {"https://arxiv.org/abs/2509.22166"}


def test_writing_it_again_changes_no_byte(folder):
    before = contents(folder)
    refresh_card(folder)
    assert contents(folder) == before


def test_further_measurements(folder, tmp_path):
    scores, bench = as_file(tmp_path / "e.json", evaluation(folder)), as_file(tmp_path / "b.json", benchmark(folder))
    command = ["card", str(folder), "--evaluation", str(scores), "--bench", str(bench)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    card = ModelCard.load(folder / "README.md")
    assert (
        "| wiki.txt | 4 x 512, from its start | ONNX Runtime | 25.000 ± 1.250 | 31.250 ± 1.500 | 1.250 ± 0.020 |"
        in card.text
    )
    assert "| wiki.txt | dense | PyTorch | 2.000 ± 0.250 |  | 25.0 % |" in card.text
    assert "| wiki.txt | sparse | ONNX Runtime | 3.000 ± 0.125 | 3.5 ± 0.5 | 50.0 ± 1.0 % |" in card.text
    assert "What it writes was measured on wiki.txt" in card.text
    assert "| piqa | acc | ONNX Runtime | 0.625 ± 0.010 | 0.500 ± 0.010 | 20.0 ± 2.0 % |" in card.text
    assert "| decode, onnxruntime-genai | 64 | 20.0 | 25.0 | 1.25 |" in card.text
    assert "| prefill, onnxruntime-genai | 64 | 128.0 | 256.0 | 2.00 |" in card.text
    assert "A processor, 2 cores" in card.text
    values = {
        (result.dataset_name, result.metric_name.split(" ")[0]): result.metric_value
        for result in card.data.eval_results
    }
    assert values["piqa", "acc"] == 0.5
    assert values["wiki.txt", "perplexity"] == 31.25
    assert (folder / "pictures" / "speed.svg").is_file()
    assert "/home/me" not in "".join(
        (folder / n).read_text() for n in ("README.md", "report.html", "measurements.json")
    )
    again = contents(folder)
    refresh_card(folder)
    assert contents(folder) == again, "what was added is forgotten"


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("evaluations", {"dense": None}, "holds no dense model's numbers"),
        ("evaluations", {"model": {"source": "other", "recipe_sha256": "0"}}, "measures another model"),
        ("evaluations", {"tasks": [{}]}, "is no result of `nm-export evaluate"),
        ("evaluations", {"texts": [{"text": "a", "generation": 3}]}, "is no result of `nm-export evaluate"),
        ("evaluations", {"texts": 3}, "is no result of `nm-export evaluate"),
        ("speeds", {"recipe_sha256": "0"}, "measures another model"),
        ("speeds", {"rows": [{}]}, "is no result of `nm-export bench"),
    ],
)
def test_numbers_of_something_else_are_refused(kind, changes, message, folder, tmp_path):
    content = (evaluation if kind == "evaluations" else benchmark)(folder, **changes)
    before = contents(folder)
    with pytest.raises(UserError, match=message):
        refresh_card(folder, **{kind: [as_file(tmp_path / "numbers.json", content)]})
    assert contents(folder) == before


def test_a_full_disk_leaves_the_old_card(folder, tmp_path, monkeypatch):
    bench = as_file(tmp_path / "b.json", benchmark(folder))
    before, write = contents(folder), Path.write_text

    def full(path, *args, **options):
        if path.name == "report.html":
            raise OSError(28, "No space left on device")
        return write(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        refresh_card(folder, speeds=[bench])
    assert contents(folder) == before


def test_without_matplotlib_there_is_a_card_without_pictures(folder, monkeypatch, caplog):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refresh_card(folder)
    assert "no pictures: matplotlib cannot be used" in caplog.text
    assert "![" not in (folder / "README.md").read_text()
    assert not list((folder / "pictures").iterdir())


def test_a_folder_that_was_saved_without_a_recipe(folder):
    (folder / "nm_export.json").unlink()
    with pytest.raises(UserError, match=r"has no nm_export\.json; give a folder that nm-export wrote from a recipe"):
        refresh_card(folder)


def test_a_repository_is_named_wherever_the_model_is_loaded(exported):
    for name, quote in (("README.md", '"'), ("report.html", "&quot;")):
        text = (exported / name).read_text()
        named = renamed(text, exported.name, "you/model")
        assert named.count(f"({quote}you/model{quote}") == 5
        assert f"({quote}{exported.name}{quote}" not in named
        assert renamed(named, "you/model", exported.name) == text


def test_names_are_text_in_the_page(exported):
    facts = read_facts(exported, name="<img src=x onerror=alert(1)>", repository="r")
    page = report_html(facts.name, card_markdown(facts, {}).text, {})
    assert "<img" not in page
    assert page.count("&lt;img src=x") == 2
