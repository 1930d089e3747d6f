"""What each process of `test_launch.py` runs: with a folder it calibrates and learns, with `--fail` it fails."""

import sys
from pathlib import Path
from typing import Any

import torch

from nm_export.calibration import calibrate as calibrate_model
from nm_export.calibration.calibrate import _gather
from nm_export.calibration.launch import launched_processes
from nm_export.calibration.processes import Processes
from nm_export.calibration.statistics import InputStatistics
from nm_export.learning import learn
from tests.learning.training import MODES, SEQUENCES, calibrated, section, state, untrained

STATIC = {
    "score": "clact",
    "shift": "static_scalar",
    "overrides": [{"modules": ["*.gate_proj", "*.down_proj"], "score": "smoothquant", "shift": "static_channel"}],
}
SETTINGS = {"gradient_accumulation": 2, "epochs": 2}


def results(processes: Processes) -> dict[str, Any]:
    """Statistics, calibrated parameters, and what both modes learn."""
    model = untrained(**STATIC)
    wanted = ("median_sum", "square_sum", "maximum")
    statistics = {name: InputStatistics(linear.in_features, wanted) for name, linear in model.nm_modules().items()}
    _gather(model, SEQUENCES, 2, statistics, processes)
    calibrate_model(model, SEQUENCES, 2, processes)
    found: dict[str, Any] = {
        "statistics": {name: each.tensors for name, each in statistics.items()},
        "parameters": state(model),
    }
    for mode in MODES:
        trained = calibrated()
        report = learn(trained, SEQUENCES, section(mode, **SETTINGS), processes=processes)
        found[mode] = {"losses": report.losses, "held_out": report.to_dict()["held_out"], "parameters": state(trained)}
    return found


def main() -> None:
    torch.set_num_threads(1)
    processes = launched_processes()
    if sys.argv[1] == "--fail":
        if processes.rank == 1:
            raise RuntimeError("out of luck")
        processes.gather(torch.zeros(1, dtype=torch.float64))
    else:
        torch.save({"count": processes.count, **results(processes)}, Path(sys.argv[1]) / f"{processes.rank}.pt")


if __name__ == "__main__":
    main()
