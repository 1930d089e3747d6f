"""Anonymous memory of the road beside the size of the weights, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from nm_export import pipeline
from nm_export.calibration.blocks import BlockCalls
from tests.conftest import MIXED
from tests.tiny_folder import tiny_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's count of anonymous memory")
def test_the_road_needs_a_small_part_of_the_weights(tmp_path):
    command = [sys.executable, "-m", "tests.pipeline.memory_process", tmp_path]
    # the C library would keep up to 64 MB of what was freed
    allocator = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    environment = {**os.environ, **allocator, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["weights"] > 150e6
    assert found["onnx"] > 2 * found["weights"]
    # what the interpreter and its libraries take is subtracted: a tiny model has gone the same road before
    grown = {stage: peak - found["before"] for stage, peak in found["peaks"].items()}
    assert {"load", "calibrate", "write", "onnx"} <= grown.keys()
    # 15 % here; one weight in float32 would add 20 %
    assert max(grown.values()) < 0.3 * found["weights"], grown


def test_a_model_larger_than_memory_becomes_the_same_files(tiny_source, tmp_path, monkeypatch):
    """Of bfloat16, as large models are: graphs compute in float32, and are compared with linears in float32."""
    statistics = [*MIXED["overrides"], {"modules": "*.gate_proj", "score": "clact", "shift": "static_channel"}]
    recipe = tiny_recipe(tiny_source, model={"dtype": "bfloat16"}, sparsity={**MIXED, "overrides": statistics})
    pipeline.run(recipe, output_dir=tmp_path / "enough")
    unpacked, options = [], onnxruntime.SessionOptions.add_session_config_entry

    def note(self, key, value):
        unpacked.append(key == "session.disable_prepacking")
        options(self, key, value)

    monkeypatch.setattr(onnxruntime.SessionOptions, "add_session_config_entry", note)
    monkeypatch.setattr("nm_export.memory.available_bytes", lambda: 0)
    by_block = []
    start = BlockCalls.__init__
    monkeypatch.setattr(BlockCalls, "__init__", lambda *args: (by_block.append(True), start(*args))[1])
    summary = pipeline.run(recipe, output_dir=tmp_path / "short")
    assert by_block == [True]
    assert sum(unpacked) == 7  # the dense graph; with each backend, two probes and a model
    assert summary.verification.modules["onnx_kernel"].largest_error < 1e-5
    one, other = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "enough", tmp_path / "short")
    )
    assert one.keys() == other.keys()
    different = {str(name) for name in one if one[name] != other[name]}
    assert different <= {"measurements.json", "README.md", "report.html"}
