"""How much memory there is, in a container too."""

import psutil
import pytest
import torch

from nm_export import memory


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A control group whose numbers a test writes, on a machine with 1,000 bytes to spare."""
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))

    def write(limit, used=0, cached=0):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        (tmp_path / "memory.stat").write_text(f"anon 7\nfile {cached}\nkernel 3\n")

    return write


def test_the_smaller_of_machine_and_container_counts(group):
    assert memory.available_bytes() == 1000  # no container
    group("max")
    assert memory.available_bytes() == 1000
    group(5000, used=4600, cached=100)
    assert memory.available_bytes() == 500
    group(5000, used=100)
    assert memory.available_bytes() == 1000


def test_weights_that_are_shared_count_once(group):
    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 10, bias=False))
    assert memory.weight_bytes(model) == 2 * 400
    assert memory.is_larger_than_memory(model)
    model[1].weight = model[0].weight
    assert memory.weight_bytes(model) == 400
    assert not memory.is_larger_than_memory(model)
