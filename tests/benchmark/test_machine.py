"""What is found out about the machine."""

from dataclasses import replace
from pathlib import Path

from nm_export.benchmark.machine import last_level_cache, measure_machine


def test_last_level_cache(tmp_path: Path) -> None:
    for index, (level, size) in enumerate([(1, "48K"), (1, "32K"), (2, "2048K"), (3, "260M")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    assert last_level_cache(tmp_path) == 260 * 2**20
    assert last_level_cache(tmp_path / "nothing") == 64 * 2**20


def test_limits_are_measured() -> None:
    machine = measure_machine(1, memory=2**20)
    assert min(machine.bandwidth, machine.peak) > 0
    faster = replace(machine, bandwidth=machine.bandwidth + 1, peak=machine.peak - 1)
    assert machine.at_best(faster) == replace(machine, bandwidth=machine.bandwidth + 1)
    assert machine.processor in machine.to_markdown()
