"""Rows of a tiny model: measured as `nm-export evaluate` would, kept part by part, and measured once."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from nm_export.calibration.processes import Processes
from nm_export.evaluation import evaluate_text, torch_logits
from nm_export.preparation import prepare
from nm_export.recipe import EvaluationSection, Recipe
from nm_export.results import measure
from nm_export.results.__main__ import main
from nm_export.results.measure import Bench
from nm_export.results.rows import Row, read_rows
from nm_export.results.store import Store
from nm_export.stages import Stages

WORDS = "The quick brown fox jumps over the lazy dog, and then it sleeps until noon.\n" * 40


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture(scope="module")
def recipes(tiny_source, text, tmp_path_factory) -> Path:
    """A folder as the project's own: two methods, one of them calibrated, and a learned one."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "paper").mkdir()
    common: dict[str, Any] = {
        "model": {"source": str(tiny_source)},
        "calibration": {"dataset": str(text), "num_samples": 2, "sequence_length": 16},
        "evaluation": {"enabled": False, "dataset": "builtin:python-docs", "num_samples": 1, "sequence_length": 16},
    }
    learning = {"mode": "end_to_end", "parameters": ["shift"], "num_samples": 256, "held_out_samples": 1}
    methods: dict[str, Any] = {
        "magnitude_8of16": {},
        "rsparse2_8of16": {"sparsity": {"residual_rank": 2, "shift": "static_channel"}},
        "lpts_8of16": {"sparsity": {"shift": "learned"}, "learning": learning},
    }
    for name, sections in methods.items():
        content = yaml.safe_dump(common | sections)
        (folder / "paper" / f"{name}.yaml").write_text(f"# {name}: made for this test.\n{content}")
    return folder


def _bench(row: Row, store: Path, text: Path, **texts: str) -> Bench:
    return Bench(row.recipe.model, Store(store), {"words": str(text), **texts}, windows=2, window=32)


def _row(recipes: Path, name: str) -> Row:
    return next(row for row in read_rows(recipes, learning=(2, 16)) if row.name == name)


def test_scores_are_those_of_the_evaluation(recipes, text, tmp_path: Path) -> None:
    row = _row(recipes, "rsparse2_8of16")
    bench = _bench(row, tmp_path, text)
    bench.measure(row)
    found = bench.measured(row)
    prepared = prepare(row.recipe, Stages(), Processes(), None)
    ids = bench.texts["words"].input_ids
    expected = evaluate_text(torch_logits(prepared.model), torch_logits(bench.dense), ids)
    assert found.texts["words"] == expected.to_dict()
    # two linears' worth of shifts and offsets aside: rank 2 of 7 linears in 2 layers, float32
    residual = sum(2 * (planned.in_features + planned.out_features) for planned in prepared.plan.linears)
    assert found.cost["parameter_bytes"] >= 4 * residual
    assert found.cost["added_share"] == residual / sum(planned.macs for planned in prepared.plan.linears)
    assert found.cost["saved_share"] == 0.5
    assert set(found.cost["cpu_seconds"]) == {"calibrate"}


def test_what_is_measured_is_not_measured_again(recipes, text, tmp_path: Path, monkeypatch) -> None:
    row = _row(recipes, "magnitude_8of16")
    bench = _bench(row, tmp_path, text)
    assert not bench.complete(row)
    bench.measure(row)
    assert bench.complete(row)

    def refuse(*_: object) -> None:
        raise AssertionError("prepared again")

    monkeypatch.setattr(measure, "prepare", refuse)
    again = _bench(row, tmp_path, text)
    again.measure(row)
    assert again.measured(row) == bench.measured(row)


def test_what_other_code_measured_is_shown_and_measured_again(recipes, text, tmp_path: Path, monkeypatch) -> None:
    row = _row(recipes, "magnitude_8of16")
    bench = _bench(row, tmp_path, text)
    bench.measure(row)
    assert not bench.measured(row).older
    for name in ("_CODE", "_TEXT_CODE"):
        with monkeypatch.context() as changed:
            changed.setattr(measure, name, ("plan.py",))
            other = _bench(row, tmp_path, text)
            assert not other.complete(row)
            assert other.measured(row).older
            assert other.measured(row).texts == bench.measured(row).texts
            other.measure(row)
            assert not other.measured(row).older
        assert bench.measured(row).older
        bench.measure(row)


def test_an_interrupted_row_keeps_what_it_has(recipes, text, tmp_path: Path, monkeypatch) -> None:
    row = _row(recipes, "magnitude_8of16")
    bench = _bench(row, tmp_path, text, docs="builtin:python-docs")
    scored = []

    def once(logits: Any, dense: Any, windows: Any, *, description: str, **keywords: Any) -> Any:
        if scored:
            raise KeyboardInterrupt
        scored.append(description)
        return evaluate_text(logits, dense, windows, description=description, **keywords)

    monkeypatch.setattr(measure, "evaluate_text", once)
    with pytest.raises(KeyboardInterrupt):
        bench.measure(row)
    assert set(bench.measured(row).texts) == {"words"}
    scored.clear()
    bench.measure(row)
    assert scored == ["docs"]
    assert set(bench.measured(row).texts) == {"words", "docs"}


def test_tasks_are_asked_of_the_dense_model_too(recipes, text, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    data = tmp_path / "data"
    data.mkdir()
    question = {"goal": "dry hands", "sol1": "use a towel", "sol2": "use a brick", "label": 0}
    (data / "piqa_valid_labeled.jsonl").write_text("".join(json.dumps({**question, "label": n}) + "\n" for n in (0, 1)))
    answers = {"question": "Two?", "choices": {"text": ["1", "2"], "label": ["A", "B"]}, "answerKey": "B"}
    (data / "ARC-Easy-Dev.jsonl").write_text(json.dumps(answers) + "\n")
    row = _row(recipes, "magnitude_8of16")
    _bench(row, tmp_path / "cache", text).measure(row)
    kept = Bench(row.recipe.model, Store(tmp_path / "cache"), {}, windows=1, window=32, task_data=data, limit=2)
    kept.measure_dense_tasks()
    kept.measure(row)
    found = kept.measured(row)
    # the two questions of PIQA differ in the right answer only: whatever a model answers, it is right once
    assert found.tasks["piqa_jsonl"].value == kept.facts("").dense_tasks["piqa_jsonl"].value == 0.5
    assert kept.facts("").asked == {"piqa_jsonl": (2, 2), "arc_easy_jsonl": (1, 1)}
    assert found.drop is not None
    assert _bench(row, tmp_path / "cache", text).complete(row), "what was measured before is still there"


def test_what_decides_the_model_decides_the_key(recipes, text, tmp_path: Path) -> None:
    row = _row(recipes, "lpts_8of16")
    bench = _bench(row, tmp_path, text)

    def key(recipe: Recipe) -> str:
        return bench.key(Row(row.name, row.method, row.title, recipe))

    def changed(section: str, **values: Any) -> Recipe:
        return row.recipe.model_copy(update={section: getattr(row.recipe, section).model_copy(update=values)})

    same = [
        row.recipe.model_copy(update={"output_dir": "elsewhere"}),
        changed("publish", private=True),
        row.recipe.model_copy(update={"evaluation": EvaluationSection(num_samples=3)}),
        changed("onnx", enabled=False),
    ]
    others = [
        changed("sparsity", pattern="4:8"),
        changed("sparsity", score="weight_norm"),
        changed("calibration", seed=1),
        changed("calibration", dataset="builtin:python-docs"),
        changed("learning", learning_rate=0.5),
    ]
    assert {key(recipe) for recipe in same} == {bench.key(row)}
    assert len({bench.key(row), *(key(recipe) for recipe in others)}) == 1 + len(others)


def test_another_calibration_text_under_the_same_name_is_another_row(recipes, text, tmp_path: Path) -> None:
    row = _row(recipes, "magnitude_8of16")
    path = tmp_path / "calibration.txt"
    path.write_text(WORDS)
    moved = row.recipe.calibration.model_copy(update={"dataset": str(path)})
    named = Row(row.name, row.method, row.title, row.recipe.model_copy(update={"calibration": moved}))
    before = _bench(row, tmp_path / "cache", text).key(named)
    path.write_text(WORDS.upper())
    assert _bench(row, tmp_path / "cache", text).key(named) != before


def _invoke(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_where_the_calibration_text_lies_is_nobodys_business(recipes, text, tmp_path: Path) -> None:
    elsewhere = tmp_path / "folder" / text.name
    elsewhere.parent.mkdir()
    elsewhere.write_text(text.read_text())
    first, second = (
        next(row for row in read_rows(recipes, calibration=str(path)) if row.name == "rsparse2_8of16")
        for path in (text, elsewhere)
    )
    bench = _bench(first, tmp_path / "store", text)
    assert bench.key(first) == bench.key(second)
    bench.measure(second)
    [stored] = (tmp_path / "store").glob("*.json")
    assert str(tmp_path) not in stored.read_text()


def test_the_command_measures_and_writes(recipes, text, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "docs" / "results.md"
    options = ["--recipes", recipes, "--wikitext", text, "--cache", tmp_path / "cache", "--page", page, "--windows", 1]
    options += ["--learned-samples", 2, "--learned-length", 16]
    first = _invoke(*options, "--skip-learned", "--only", "magnitude_8*", "--only", "l*")
    assert first.exit_code == 0, first.output
    before = page.read_text(encoding="utf-8")
    assert "| magnitude_8of16 |" in before
    assert "lpts_8of16" in before.split("Not measured yet")[1]
    assert page.with_suffix(".svg").is_file()
    assert _invoke(*options, "--only", "lpts_8of16").exit_code == 0
    assert "| lpts_8of16† |" in page.read_text(encoding="utf-8")
    written = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("lpts*.json")]
    assert written[0]["note"] == "2 x 16 tokens instead of 256 x 512"
    page.unlink()
    assert _invoke(*options, "--no-measure").exit_code == 0
    assert "| magnitude_8of16 |" in page.read_text(encoding="utf-8")


def test_mistakes_are_one_sentence(recipes, tmp_path: Path) -> None:
    missing = _invoke("--recipes", recipes, "--wikitext", tmp_path / "none.txt", "--cache", tmp_path)
    assert (missing.exit_code, "none.txt" in missing.output) == (2, True)
    unknown = _invoke("--recipes", recipes, "--only", "nothing")
    assert (unknown.exit_code, "magnitude_8of16" in unknown.output) == (2, True)
