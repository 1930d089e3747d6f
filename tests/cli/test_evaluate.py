"""`nm-export evaluate`: options, the files it writes, and what a user reads when it stops."""

import json
import sys
from types import ModuleType

import pytest
from typer.testing import CliRunner

import nm_export.evaluation
from nm_export import json_files
from nm_export.cli import app
from nm_export.errors import UserError

SHORT = ["--window", "16", "--windows", "2"]


def run(*words):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)], prog_name="nm-export")


class Result:
    def to_dict(self):
        return {"perplexity": 3.5}

    def __str__(self):
        return "| a table |"


@pytest.fixture
def recorded(monkeypatch):
    """Stands in for the measurement."""
    calls = []
    module = ModuleType("recorded")
    module.evaluate = lambda *args, **options: calls.append((args, options)) or Result()
    monkeypatch.setitem(sys.modules, "nm_export.evaluation", module)
    monkeypatch.setattr(nm_export, "evaluation", module)
    return calls


def test_defaults(recorded):
    result = run("out")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "| a table |"
    assert recorded == [
        (
            ("out",),
            {
                "against": None,
                "texts": (),
                "tasks": (),
                "backend": "torch",
                "window": 512,
                "windows": 24,
                "generate": 0,
                "text_column": "text",
                "include_path": (),
                "task_data": None,
                "limit": None,
                "seed": 0,
                "batch_size": None,
                "device": "cpu",
            },
        )
    ]


def test_lists(recorded):
    words = ["--text", "a", "--text", "b@test", "--tasks", "piqa, arc_easy", "--tasks", "copa", "--backend", "onnx"]
    words += ["--generate", "8"]
    assert run("out", *words).exit_code == 0
    [(_, options)] = recorded
    assert options["texts"] == ("a", "b@test")
    assert options["tasks"] == ("piqa", "arc_easy", "copa")
    assert (options["backend"], options["generate"]) == ("onnx", 8)


def test_numbers_are_written(recorded, tmp_path):
    target = tmp_path / "scores.json"
    assert run("out", "--json", target).exit_code == 0
    assert json.loads(target.read_text()) == {"perplexity": 3.5}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("place", [".", "missing/scores.json"])
def test_a_place_that_cannot_be_written_is_named_before_anything_runs(recorded, tmp_path, place):
    result = run("out", "--json", tmp_path / place)
    assert result.exit_code == 2
    assert "--json" in result.stderr
    assert recorded == []


def test_a_failed_write_leaves_the_old_numbers(tmp_path):
    target = tmp_path / "scores.json"
    target.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        json_files.write_json(target, {"perplexity": float("nan")})
    with pytest.raises(UserError):
        json_files.check_json_target(tmp_path)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_table_on_stdout_and_numbers_in_a_file(tiny_source, tmp_path):
    (tmp_path / "text.txt").write_text("some words to read " * 10)
    result = run(tiny_source, "--text", tmp_path / "text.txt", *SHORT, "--json", tmp_path / "scores.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("| text")
    numbers = json.loads((tmp_path / "scores.json").read_text())
    assert f"{numbers['texts'][0]['perplexity']['value']:.3f}" in result.stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["{tmp}"], "no config.json"),
        (["/no/such/model"], "/no/such/model"),
        (["sample:unknown"], "there is no sample:unknown"),
        (["{model}", "--text", "missing.txt"], "no file missing.txt"),
        (["{model}", "--window", "100", "--text", "{tmp}/short.txt"], "one window needs 100"),
        (["{model}", "--window", "1"], "--window"),
        (["{model}", "--backend", "genai"], "genai"),
        (["{model}", "--tasks", "piqa_jsonl", "--task-data", "{tmp}"], "piqa_valid_labeled.jsonl"),
        (["{model}", "--limit", "0"], "--limit"),
    ],
)
def test_mistakes_end_with_one_sentence_and_code_2(tiny_source, tmp_path, words, part):
    if "--tasks" in words:
        pytest.importorskip("lm_eval")
    (tmp_path / "short.txt").write_text("short")
    result = run(*(word.format(model=tiny_source, tmp=tmp_path) for word in words))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert part in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    if "Usage:" not in result.stderr:
        *progress, last = result.stderr.strip().splitlines()
        assert last.startswith("error: ")
        assert all(line.startswith("Loading ") for line in progress)
