"""Calibration with every statistic on, beside a plain dense forward pass over the same tokens, on SmolLM2-135M.

Run as `python -m tests.calibration.bench_calibration [--rounds R] [--samples S] [--batch-size B]`. Rounds alternate,
so that a busy machine slows both, and the ratio is taken round by round. Peak memory is that of a process of its own;
what the allocator keeps differs from one to the next, so of as many processes a side as there are rounds.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from nm_export import sparsify
from nm_export.calibration import calibrate
from nm_export.calibration.text import token_sequences
from nm_export.recipe import CalibrationSection, ModelSection
from nm_export.sources import load_model

# q, k and v share an input, and so do gate and up: every input is measured, and with all four statistics in the model
MIXED = {
    "score": "clact",
    "shift": "static_scalar",
    "overrides": [{"modules": ["*.q_proj", "*.gate_proj"], "score": "smoothquant", "shift": "static_channel"}],
}


def load(samples: int, length: int) -> tuple[Any, torch.Tensor]:
    model, tokenizer, _ = load_model(ModelSection(source="sample:smollm2-135m-instruct"))
    sequences = token_sequences(tokenizer, CalibrationSection(num_samples=samples, sequence_length=length))
    return sparsify(model.eval(), **MIXED), sequences


def dense(model: Any, sequences: torch.Tensor, batch_size: int) -> None:
    with torch.inference_mode(), model.dense():
        for batch in sequences.split(batch_size):
            model.base_model(input_ids=batch, use_cache=False)


def seconds(function: Any, *args: Any) -> tuple[float, float]:
    """Wall-clock time, and processor time of all threads, which a busy machine lengthens less."""
    start, start_cpu = time.perf_counter(), time.process_time()
    function(*args)
    return time.perf_counter() - start, time.process_time() - start_cpu


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # else loading the model would be the peak of both sides


def memory_mib(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--memory", choices=["dense", "calibrate"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sides = {"dense": dense, "calibrate": calibrate}
    model, sequences = load(arguments.samples, arguments.length)
    if arguments.memory:
        forget_peak()
        before = memory_mib("VmRSS")
        sides[arguments.memory](model, sequences, arguments.batch_size)
        print(f"{before:.0f} {memory_mib('VmHWM'):.0f}")
        return
    dense(model, sequences[:1], 1)
    rounds = [
        [seconds(side, model, sequences, arguments.batch_size) for side in sides.values()]
        for _ in range(arguments.rounds)
    ]
    for index, clock in enumerate(("wall clock", "processor time")):
        pairs = [(plain[index], calibrated[index]) for plain, calibrated in rounds]
        ratio = statistics.median(calibrated / plain for plain, calibrated in pairs)
        print(f"calibration / dense forward: {ratio:.3f} ({clock}, median of {len(rounds)} rounds; seconds: ", end="")
        print(", ".join(f"{calibrated:.2f} / {plain:.2f}" for plain, calibrated in pairs) + ")", flush=True)
    for side in sides:
        command = [sys.executable, "-m", "tests.calibration.bench_calibration", "--memory", side, *sys.argv[1:]]
        lines = [
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            for _ in range(arguments.rounds)
        ]
        before, after = (statistics.median(float(line[index]) for line in lines) for index in range(2))
        print(f"peak resident memory, {side}: {after:.0f} MiB ({before:.0f} MiB with the model loaded)", end="; ")
        print(", ".join(after for _, after in lines))


if __name__ == "__main__":
    main()
