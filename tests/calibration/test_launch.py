"""`accelerate launch` and `torchrun` with two processes on the CPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nm_export import pipeline
from nm_export.calibration import launch as launch_module
from nm_export.calibration.launch import launched_processes
from nm_export.calibration.processes import Processes
from nm_export.errors import UserError
from tests.calibration.launched import results
from tests.learning.training import assert_equal
from tests.tiny_folder import tiny_recipe

ROOT = Path(__file__).parents[2]
# --multi_gpu is the launcher's word for several processes; without a GPU they compute on the CPU
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--main_process_port=0"]
ACCELERATE += ["--mixed_precision=no", "--dynamo_backend=no", "--num_processes=2"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def launch(launcher, *words, cwd=ROOT):
    """Run to the end; a deadlock fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *launcher, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=540)


def test_a_process_that_was_started_alone_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched_processes() == Processes()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched_processes() == Processes()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0, WORLD_SIZE=2, as in a launch, but MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "zero", "WORLD_SIZE": "two"}, "RANK=zero, WORLD_SIZE=two: invalid literal"),
    ],
)
def test_variables_that_a_launch_has_left_are_named(variables, message, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) as error:
        launched_processes()
    assert "unset RANK WORLD_SIZE" in str(error.value)
    assert "accelerate launch" in str(error.value)


def test_nobody_waits_in_silence(monkeypatch, capsys):
    monkeypatch.setattr(launch_module, "SILENCE", 0.01)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)

    def join():
        time.sleep(0.5)
        raise RuntimeError("nobody came")

    monkeypatch.setattr(launch_module, "_join", join)
    with pytest.raises(UserError, match=r"the 2 processes of the launch cannot be joined \(nobody came\)"):
        launched_processes()
    assert "Process 0 of 2 waits for the others, because the environment has " in capsys.readouterr().err


def test_two_processes_find_what_one_finds(tmp_path):
    done = launch(ACCELERATE, ROOT / "tests" / "calibration" / "launched.py", tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = results(Processes())
    assert first["count"] == second["count"] == 2
    for found in (first, second):
        assert_equal(found["parameters"], alone["parameters"])
        assert found["statistics"].keys() == alone["statistics"].keys()
        for name, expected in alone["statistics"].items():
            assert_equal(found["statistics"][name], expected)

    for mode in ("blockwise", "end_to_end"):
        assert_equal(second[mode].pop("parameters"), parameters := first[mode].pop("parameters"))
        assert second[mode] == first[mode]
        assert first[mode]["losses"] == pytest.approx(alone[mode]["losses"], rel=1e-4)
        for name, expected in alone[mode]["parameters"].items():
            torch.testing.assert_close(parameters[name], expected, rtol=1e-3, atol=1e-3)


def test_an_error_in_one_process_ends_the_launch():
    done = launch(TORCHRUN, ROOT / "tests" / "calibration" / "launched.py", "--fail")
    assert done.returncode != 0
    assert "RuntimeError: out of luck" in done.stderr


def test_four_processes_write_the_files_of_one(tiny_source, tmp_path):
    recipe = tiny_recipe(
        tiny_source,
        # five batches: the last round is for one process only
        calibration={"num_samples": 9},
        sparsity={
            "score": "clact",
            "shift": "static_scalar",
            "output_bias": "calibrated",
            "overrides": [{"modules": ["*.mlp.*"], "score": "smoothquant", "shift": "static_channel"}],
        },
    )
    alone, together = tmp_path / "alone", tmp_path / "together"
    pipeline.run(recipe, output_dir=alone, skip_onnx=True)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    words = ["-m", "nm_export", file, "--output-dir", together, "--skip-onnx"]
    done = launch([*ACCELERATE[:-1], "--num_processes=4"], *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = [path.relative_to(alone) for path in alone.rglob("*") if path.is_file()]
    assert {path.relative_to(together) for path in together.rglob("*") if path.is_file()} == set(files)
    measured = {Path("measurements.json"), Path("README.md"), Path("report.html")}  # times, memory, the folder's name
    different = [str(path) for path in files if (alone / path).read_bytes() != (together / path).read_bytes()]
    assert set(map(Path, different)) <= measured


def test_the_command_writes_once_what_one_process_writes(tiny_source, tmp_path):
    recipe = tiny_recipe(
        tiny_source,
        sparsity={"score": "clact", "shift": "learned", "output_scale": True},
        learning={
            "mode": "end_to_end",
            "parameters": ["shift", "scale"],
            "num_samples": 4,
            "held_out_samples": 2,
            "sequence_length": 32,
            "gradient_accumulation": 2,
            "learning_rate": 1e-3,
        },
    )
    alone, together = tmp_path / "alone" / "model", tmp_path / "together" / "model"
    pipeline.run(recipe, output_dir=alone, skip_onnx=True)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    done = launch(ACCELERATE, "-m", "nm_export", file, "--output-dir", together, "--skip-onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Writing the model") == 1
    assert list(together.parent.iterdir()) == [together]  # nothing unfinished beside it

    names, others = ({p.relative_to(run) for p in run.rglob("*") if p.is_file()} for run in (alone, together))
    assert names == others
    for name in sorted(names - {Path("measurements.json")}):
        assert (together / name).read_bytes() == (alone / name).read_bytes(), name
    measured, measured_alone = (
        json.loads((folder / "measurements.json").read_text(encoding="utf-8")) for folder in (together, alone)
    )
    assert measured["learning"]["losses"] == measured_alone["learning"]["losses"]
    assert measured["perplexity"]["dense"] == measured_alone["perplexity"]["dense"]
