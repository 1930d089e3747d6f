"""Speed in a run: measured where the recipe asks for it, and no run fails for the lack of it."""

import json

from nm_export import pipeline
from nm_export.benchmark import model as benchmark
from nm_export.errors import UserError
from tests.tiny_folder import tiny_recipe


def test_a_recipe_asks_for_it(tiny_source, tmp_path):
    settings = {"enabled": True, "prompts": [8], "new_tokens": 2, "repeats": 1}
    recipe = tiny_recipe(tiny_source, benchmark=settings, verify={"enabled": False}, evaluation={"enabled": False})
    folder = pipeline.run(recipe, output_dir=tmp_path / "tiny").folder
    (speed,) = json.loads((folder / "measurements.json").read_text())["speed"]
    assert (speed["title"], speed["repeats"], speed["new_tokens"]) == ("tiny", 1, 2)
    assert [(row["runtime"], row["prompt"]) for row in speed["rows"]] == [("ONNX Runtime", 8), ("onnxruntime-genai", 8)]
    card = (folder / "README.md").read_text()
    row = speed["rows"][1]
    ratio = row["dense_decode"] / row["sparse_decode"]
    assert f"| {1 / row['dense_decode']:,.1f} | {1 / row['sparse_decode']:,.1f} | {ratio:.2f} |" in card
    assert speed["machine"] in card
    assert "pictures/speed.svg" in card


def test_what_is_missing_is_said(exported, monkeypatch, caplog):
    def missing(module: str, extra: str) -> None:
        raise UserError(f"{module} is not installed")

    monkeypatch.setattr(benchmark, "require", missing)
    assert pipeline._speed(None, exported, tiny_recipe(exported, benchmark={"enabled": True}), "tiny") is None
    assert "Speed is not measured: onnxruntime is not installed" in caplog.text
