"""The same recipe again: what is done is taken as it is, what is stale is done again, and both are said."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

import nm_export
from nm_export import digests, pipeline
from nm_export.errors import UserError
from nm_export.inputs import Inputs
from nm_export.verification import forms
from tests.tiny_folder import tiny_recipe, write_tiny_folder

QUICK = {"verify": {"enabled": False}}
WEIGHTS = {"modules": "*.o_proj", "prune": "weights", "residual_rank": 0}
WEIGHTS |= {"score": "magnitude", "shift": "none", "output_bias": "none"}


class StopError(Exception):
    """Stands for whatever ends a run."""


def run_until(owner, name, recipe, out):
    """A run that ends when it calls `owner.name`."""

    def stop(*_, **__):
        raise StopError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, stop)
        with pytest.raises(StopError):
            pipeline.run(recipe, output_dir=out, skip_onnx=True)
    assert not out.exists()
    return out.parent / ".out.work"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path):
    return write_tiny_folder(tmp_path / "source")


@pytest.fixture
def stopped(source, tmp_path):
    """A folder in which a run has ended after the model was written."""
    out = tmp_path / "place" / "out"
    run_until(pipeline, "_quality", tiny_recipe(source, **QUICK), out)
    return out


def run(source, out, capsys, **sections):
    pipeline.run(tiny_recipe(source, **{**QUICK, **sections}), output_dir=out, skip_onnx=True)
    said = [line.removeprefix("• ") for line in capsys.readouterr().err.splitlines() if ": done" in line]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    return dict(line.split(": ", 1) for line in said)


def test_goes_on_without_the_model(source, stopped, capsys):
    done = run(source, stopped, capsys)
    assert done == dict.fromkeys(["plan", "evaluate_dense", "calibrate", "write", "evaluate"], "done, taken as it is")


@pytest.mark.parametrize(
    ("sections", "stale"),
    [
        ({"publish": {"max_shard_size": "1MB"}}, {"write": "publish changed"}),
        ({"evaluation": {"num_samples": 3}}, {"evaluate_dense": "held-out text changed"}),
        ({"calibration": {"batch_size": 3}}, {"calibrate": "calibration changed"}),
        (
            {"sparsity": {"pattern": "4:8"}},
            {
                "plan": "sparsity changed",
                "calibrate": "sparsity changed",
                "write": "sparsity and what calibrate wrote changed",
            },
        ),
    ],
)
def test_only_what_is_stale_is_done_again(sections, stale, source, stopped, capsys):
    done = run(source, stopped, capsys, **sections)
    for stage in ("plan", "evaluate_dense", "calibrate", "write"):
        assert done[stage] == (f"done again, {stale[stage]}" if stage in stale else "done, taken as it is")


def test_another_model_makes_everything_stale(source, stopped, capsys):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    done = run(source, stopped, capsys)
    assert all("model" in said and "changed" in said for said in done.values())


def test_a_finished_folder_is_left_alone(source, tmp_path, monkeypatch, capsys):
    out = tmp_path / "place" / "out"
    run(source, out, capsys)
    before, times = contents(out), {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(pipeline, "prepare", None)
    summary = pipeline.run(tiny_recipe(source, **QUICK), output_dir=out, skip_onnx=True)
    assert contents(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    assert summary.plan is None
    assert summary.perplexity == json.loads(before["measurements.json"])["perplexity"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]

    with pytest.raises(UserError, match="pass --overwrite to replace it"):
        pipeline.run(tiny_recipe(source, sparsity={"pattern": "2:4"}, **QUICK), output_dir=out, skip_onnx=True)
    weights = out / "model.safetensors"
    weights.write_bytes(before["model.safetensors"][:-1] + b"x")
    with pytest.raises(UserError, match=r"model\.safetensors is not as it was written; pass --overwrite"):
        pipeline.run(tiny_recipe(source, **QUICK), output_dir=out, skip_onnx=True)
    monkeypatch.undo()
    pipeline.run(tiny_recipe(source, **QUICK), output_dir=out, skip_onnx=True, overwrite=True)
    after = contents(out)
    assert {name for name in after if after[name] != before[name]} <= {"measurements.json"}


def test_verification_that_fails_keeps_what_it_judged(source, tmp_path):
    workspace = run_until(forms, "reload_and_record", tiny_recipe(source), tmp_path / "place" / "out")
    assert (workspace / "model" / "model.safetensors").is_file()


def test_clock_jumps(source, tmp_path, monkeypatch, capsys):
    run(source, tmp_path / "steady" / "out", capsys)
    now, steps = time.time(), iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now + (-1) ** next(steps) * 1e8)
    run(source, tmp_path / "jumping" / "out", capsys)
    steady, jumping = (contents(tmp_path / name / "out") for name in ("steady", "jumping"))
    assert {name for name in steady if steady[name] != jumping.get(name)} <= {"measurements.json"}
    seconds = json.loads(jumping["measurements.json"])["seconds"]
    assert all(0 <= value < 1000 for value in seconds.values())


def test_parameters_survive_being_kept(source, tmp_path, monkeypatch, capsys):
    """Everything that calibration makes, weights that it prunes among them."""
    sections = {
        "sparsity": {
            "score": "clact",
            "shift": "static_channel",
            "output_bias": "calibrated",
            "residual_rank": 2,
            "overrides": [WEIGHTS],
        }
    }
    run(source, tmp_path / "whole" / "out", capsys, **sections)

    out = tmp_path / "stopped" / "out"
    run_until(pipeline, "write_model", tiny_recipe(source, **QUICK, **sections), out)
    done = run(source, out, capsys, **sections)
    assert done["calibrate"] == "done, taken as it is"
    whole, continued = contents(tmp_path / "whole" / "out"), contents(out)
    assert {name for name in whole if whole[name] != continued.get(name)} <= {"measurements.json"}


def test_speed_is_measured_again_when_what_measures_it_has_changed(monkeypatch, tmp_path):
    """Nothing else depends on the code of the benchmark."""
    package = shutil.copytree(Path(nm_export.__file__).parent, tmp_path / "nm_export")
    monkeypatch.setattr(digests, "_PACKAGE", package)

    def both():
        digests.program_digest.cache_clear()
        return digests.program_digest(), digests.program_digest("benchmark/")

    program, benchmark = both()
    (package / "benchmark" / "model.py").write_text("changed = True\n")
    assert both()[0] == program
    assert both()[1] != benchmark
    _, benchmark = both()
    (package / "console.py").write_text("changed = True\n")
    assert both() == (program, benchmark)
    (package / "plan.py").write_text("changed = True\n")
    assert both()[0] != program
    digests.program_digest.cache_clear()


def test_the_benchmark_reads_its_own_program(source):
    recipe = tiny_recipe(source, benchmark={"enabled": True})
    inputs = Inputs(recipe, {}, {"held-out text": torch.zeros(1, 2, dtype=torch.int64)}, with_onnx=True)
    assert inputs.of("benchmark", {})["the program"] == digests.program_digest("benchmark/")
    assert inputs.of("verify", {})["the program"] == digests.program_digest()
