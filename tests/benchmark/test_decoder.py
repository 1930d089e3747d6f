"""A decoder of a tiny architecture is exported and timed; its numbers are not judged."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nm_export.benchmark import ModelBenchmark, shapes
from nm_export.benchmark.shapes import Architecture
from nm_export.cli import app

TINY = Architecture("tiny", "nobody/tiny", "MistralConfig", 32, 64, 2, 1, 16)


@pytest.mark.parametrize(("options", "precision"), [([], "fp32"), (["--precision", "int8"], "int8, block 32")])
def test_both_forms_in_both_runtimes(
    options: list[str], precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shapes, "ARCHITECTURES", {"tiny": TINY})
    arguments = ["bench", "decoder", "--architecture", "tiny", "--layers", "1", "--vocabulary", "16", *options]
    arguments += ["--prompt", "4", "--prompt", "7", "--new-tokens", "2", "--repeats", "1"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "numbers.json")])
    assert result.exit_code == 0, result.output
    read = ModelBenchmark.from_dict(json.loads((tmp_path / "numbers.json").read_text()))
    assert read.precision == precision
    assert read.title == "tiny, 1 layer, vocabulary 16, every linear 8:16"
    assert [(row.runtime, row.prompt) for row in read.rows] == [
        ("ONNX Runtime", 4),
        ("ONNX Runtime", 7),
        ("onnxruntime-genai", 4),
        ("onnxruntime-genai", 7),
    ]
    assert min(min(row.decode_ratio, row.prefill_ratio) for row in read.rows) > 0


def test_an_unknown_architecture() -> None:
    result = CliRunner().invoke(app, ["bench", "decoder", "--architecture", "gpt-9"])
    assert result.exit_code == 2
    assert "known are smollm2" in result.output
