"""The benchmark runs both forms; its numbers are not judged."""

import json

from typer.testing import CliRunner

from nm_export.cli import app


def test_times_both_forms_in_both_runtimes(exported, tmp_path):
    arguments = ["bench", str(exported), "--prompt", "8", "--new-tokens", "3", "--repeats", "2"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "numbers.json")])
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert [(row["runtime"], row["prompt"]) for row in numbers["rows"]] == [
        ("ONNX Runtime", 8),
        ("onnxruntime-genai", 8),
    ]
    for row in numbers["rows"]:
        assert min(row[f"{form}_{phase}"] for form in ("dense", "sparse") for phase in ("prefill", "decode")) > 0
    assert "decode, ratio" in result.output
    assert [path.name for path in (exported / "onnx").iterdir()].count("model.onnx") == 1


def test_a_folder_that_was_not_exported(tmp_path):
    result = CliRunner().invoke(app, ["bench", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no exported model" in result.output
