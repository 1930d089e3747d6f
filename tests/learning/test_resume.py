"""A training that was stopped goes on where it was, and ends with the bits of one that was not."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from nm_export.learning import blockwise, end_to_end, learn
from nm_export.learning.checkpoints import Checkpoints
from tests.learning.training import MODES, SEQUENCES, assert_equal, calibrated, section, state

ALL = ("shift", "scale", "bias", "residual", "weight")
STOPS = {"blockwise": 20, "end_to_end": 11}  # of 32 and of 16 steps: in the second block; one step after a checkpoint


class StopError(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(autouse=True)
def _frequent_checkpoints(monkeypatch):
    monkeypatch.setattr(end_to_end, "CHECKPOINT_STEPS", 5)


@pytest.fixture
def steps_taken(monkeypatch):
    """How many steps the optimisers have taken; `stop_at` makes one raise."""
    taken = Steps()
    for module in (blockwise, end_to_end):
        monkeypatch.setattr(module, "Optimiser", taken.counting(module.Optimiser))
    return taken


class Steps:
    count = 0
    stop_at: int | None = None

    def counting(self, optimiser):
        steps = self

        class Counting(optimiser):
            def step(self):
                if steps.count == steps.stop_at:
                    raise StopError
                steps.count += 1
                super().step()

        return Counting


def run(mode, folder, key="key"):
    model = calibrated()
    report = learn(model, SEQUENCES, section(mode, parameters=ALL), checkpoint_dir=folder, checkpoint_key=key)
    return state(model), report, model.config.sparsity["rewritten"]


def stopped(mode, folder, steps_taken):
    steps_taken.stop_at = STOPS[mode]
    with pytest.raises(StopError):
        run(mode, folder)
    steps_taken.stop_at, steps_taken.count = None, 0


@pytest.mark.parametrize("mode", MODES)
def test_a_stopped_training_goes_on(mode, tmp_path, steps_taken):
    expected = run(mode, None)
    total, steps_taken.count = steps_taken.count, 0
    assert total == {"blockwise": 32, "end_to_end": 16}[mode]
    stopped(mode, tmp_path / "checkpoints", steps_taken)
    found = run(mode, tmp_path / "checkpoints")
    assert steps_taken.count == {"blockwise": 16, "end_to_end": 6}[mode]  # the first block; ten steps
    assert_equal(found[0], expected[0])
    assert found[1:] == expected[1:]
    steps_taken.count = 0
    again = run(mode, tmp_path / "checkpoints")
    assert steps_taken.count == 0
    assert_equal(again[0], expected[0])
    assert again[1:] == expected[1:]


def test_a_block_that_was_not_kept_is_not_tried_again(tmp_path, monkeypatch, steps_taken):
    monkeypatch.setattr(blockwise._Block, "_mean_loss", lambda *_: 1.0)
    start = state(calibrated())
    for steps in (32, 0):
        steps_taken.count = 0
        found, report, rewritten = run("blockwise", tmp_path)
        assert steps_taken.count == steps
        assert [kept for _, _, kept in report.held_out.values()] == [False, False]
        assert rewritten == []
        assert_equal(found, start)


@pytest.mark.parametrize("mode", MODES)
def test_checkpoints_of_something_else_are_not_used(mode, tmp_path, steps_taken):
    run(mode, tmp_path, key="of another recipe")
    steps_taken.count = 0
    run(mode, tmp_path)
    assert steps_taken.count == {"blockwise": 32, "end_to_end": 16}[mode]


def truncate(data):
    return data[: len(data) // 2]


def flip_last_bit(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def zeros(data):
    return bytes(len(data))


def empty(_):
    return b""


@pytest.mark.parametrize("damage", [truncate, flip_last_bit, zeros, empty])
def test_damaged_checkpoints_are_not_used(damage, tmp_path):
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save("name", {"a": torch.arange(6.0).reshape(2, 3).T, "step": torch.tensor(3.0)}, {"losses": [1.5]})
    tensors, facts = checkpoints.load("name")
    assert torch.equal(tensors["a"], torch.arange(6.0).reshape(2, 3).T)
    assert tensors["step"] == 3
    assert facts == {"losses": [1.5]}
    path = tmp_path / "name.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert checkpoints.load("name") is None


def test_other_safetensors_files_are_not_checkpoints(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "name.safetensors")
    assert Checkpoints(tmp_path, "key").load("name") is None
    assert Checkpoints(None, "key").load("name") is None


def test_a_damaged_checkpoint_costs_time_only(tmp_path, steps_taken):
    expected = run("blockwise", tmp_path)
    path = tmp_path / "model.layers.0.safetensors"
    path.write_bytes(flip_last_bit(path.read_bytes()))
    steps_taken.count = 0
    found = run("blockwise", tmp_path)
    assert steps_taken.count == 16  # the second block, whose checkpoint is whole, is not trained again
    assert_equal(found[0], expected[0])


def test_a_killed_process_leaves_what_the_next_one_continues(tmp_path, steps_taken):
    """The first run is a process of its own, killed as soon as its first block is on disk."""
    code = (
        "from pathlib import Path; from tests.learning.test_resume import run; import sys, torch;"
        "torch.set_num_threads(1); run('blockwise', Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": "."})
    deadline = time.monotonic() + 300
    while not (tmp_path / "model.layers.0.safetensors").exists():
        assert process.poll() is None, "the process ended without a checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = run("blockwise", tmp_path)
    assert steps_taken.count in (0, 16)  # 0 if the second block was faster than the signal
    assert_equal(found[0], run("blockwise", None)[0])
