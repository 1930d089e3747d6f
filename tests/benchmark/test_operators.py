"""The benchmark of operators on tiny shapes; its numbers are not judged."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from nm_export.benchmark import OperatorBenchmark, benchmark_operators, shapes
from nm_export.benchmark.overhead import benchmark_overhead
from nm_export.benchmark.products import ProductSettings, benchmark_products, kept_channels, prune
from nm_export.benchmark.rivals import StoredWeights
from nm_export.benchmark.selection import benchmark_selection
from nm_export.benchmark.shapes import Architecture, Shape
from nm_export.benchmark.storage import Storage, dense_tensors, sparse_tensors
from nm_export.benchmark.timing import Clock
from nm_export.cli import app
from nm_export.errors import NMExportError, UserError
from nm_export.onnx.quantize import unpack

TINY = Architecture("tiny", "nobody/tiny", "LlamaConfig", 32, 64, 2, 1, 16)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "ARCHITECTURES", {"tiny": TINY})


def settings(*formats: str, shape: Shape | None = None, **others: object) -> ProductSettings:
    values: dict = {"tokens": (1, 3), "patterns": ("2:4",), "threads": 1, "repeats": 2, "memory": 1, **others}
    return ProductSettings(
        shapes=[shape or Shape("o", 32, 48)], formats=[Storage.parse(text) for text in formats], **values
    )


def test_shapes_that_are_equal_are_measured_once() -> None:
    assert [(s.modules, s.K, s.O) for s in TINY.shapes()] == [
        ("q, o", 32, 32),
        ("k, v", 32, 16),
        ("gate, up", 32, 64),
        ("down", 64, 32),
    ]
    assert {s.modules: (s.K, s.O) for s in shapes.architecture("gemma-3-4b").shapes()} == {
        "q": (2560, 2048),
        "k, v": (2560, 1024),
        "o": (2048, 2560),
        "gate, up": (2560, 10240),
        "down": (10240, 2560),
    }


@pytest.mark.parametrize("form", ["fp32", "fp16", "bf16"])
def test_bytes_and_operations_of_a_product(form: str) -> None:
    size = {"fp32": 4, "fp16": 2, "bf16": 2}[form]
    one, three = benchmark_products(settings(form))
    assert (one.tokens, three.tokens) == (1, 3)
    assert one.dense_bytes == 32 * 48 * 4 + (32 + 48) * 4
    assert one.sparse_bytes == 16 * 48 * size + (32 + 48) * 4  # half of the rows
    assert one.dense_bytes < three.dense_bytes
    assert 16 * 48 * size < three.sparse_bytes - 3 * (32 + 48) * 4 <= 32 * 48 * size
    assert (three.dense_flops, three.sparse_flops) == (2 * 3 * 32 * 48, 3 * 32 * 48)
    assert min(one.dense_seconds, one.sparse_seconds, one.ratio.low) > 0


def test_bytes_of_a_quantized_product() -> None:
    _, four = (list(benchmark_products(settings(f"int{bits}:16", tokens=(1,)))) for bits in (8, 4))
    scales = 2 * 48  # blocks
    assert four[0].sparse_bytes == 16 * 48 // 2 + 2 * scales + 2 + (32 + 48) * 4  # half of the rows; all scales
    assert four[0].dense_bytes == 32 * 48 // 2 + 4 * scales + (32 + 48) * 4


@pytest.mark.parametrize(("bits", "step"), [(8, 127), (4, 7)])
def test_quantized_weights_are_the_same_in_both_layouts(bits: int, step: int) -> None:
    weight = np.random.default_rng(0).standard_normal((40, 48), np.float32)
    form = Storage.parse(f"int{bits}:16")
    ours, theirs = sparse_tensors(weight, form), dense_tensors(weight, form)
    assert ours["weight"].shape == (40, 48)
    assert theirs["weight"].shape == (48, 3, 16 * bits // 8)
    codes = unpack(ours["weight"].content, (40, 48), bits)
    filled = unpack(theirs["weight"].content.reshape(-1), (48, 48), bits)
    assert np.array_equal(codes, filled[:, :40].T)
    assert ours["scales"].shape == (3, 48)
    assert np.array_equal(ours["scales"].content, theirs["scales"].content.T.astype(np.float16))
    largest = np.abs(np.pad(weight, ((0, 8), (0, 0))).reshape(3, 16, 48)).max(axis=1)
    assert np.allclose(theirs["scales"].content, largest.T / step)
    zero = int(ours["zero_points"].content[0])
    assert (ours["zero_points"].shape, zero) == ((1,), step + 1)
    got = (codes.astype(np.float32) - zero) * np.repeat(ours["scales"].content, 16, axis=0)[:40]
    assert np.abs(got - weight).max() < 0.51 * largest.max() / step


def test_a_wrong_product_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nm_export.benchmark.products.prune", lambda x, n, m: x)
    with pytest.raises(NMExportError, match=r"The sparse product of 32 x 48, fp32, differs"):
        list(benchmark_products(settings("fp32")))


def test_weights_exceed_the_memory_and_differ(tmp_path: Path) -> None:
    tensors = sparse_tensors(np.arange(32 * 48, dtype=np.float32).reshape(32, 48), Storage("fp32"))
    weights = StoredWeights.write(tmp_path / "w.data", tensors, memory=40_000)
    assert weights.copies * weights.nbytes > 40_000 >= (weights.copies - 1) * weights.nbytes
    contents = []
    for constant in weights.constants():
        place = {entry.key: entry.value for entry in constant.external_data}
        start = int(place["offset"])
        assert start % 4096 == 0
        contents.append((tmp_path / "w.data").read_bytes()[start : start + int(place["length"])])
    assert len(set(contents)) == weights.copies
    assert contents[0] == tensors["weight"].content.tobytes()


def test_patterns() -> None:
    assert kept_channels("8:16", 64) == (8, 16)
    assert kept_channels("30%", 64) == (19, 64)
    assert prune(np.array([[1, -3, 2, 0.5]], np.float32), 1, 2).tolist() == [[0, -3, 2, 0]]
    with pytest.raises(UserError, match=r"8:16: 16 does not divide the 24 input channels"):
        list(benchmark_products(settings("fp32", shape=Shape("o", 24, 16), patterns=("2:4", "8:16"))))
    with pytest.raises(UserError, match=r"--pattern"):
        kept_channels("half", 64)


@pytest.mark.parametrize("text", ["int5", "fp32:32", "int4:24", "int4:512", ""])
def test_formats_that_there_are_not(text: str) -> None:
    with pytest.raises(UserError, match=r"--weights"):
        Storage.parse(text)


def test_selection_and_overhead() -> None:
    found = benchmark_selection(tokens=4, K=64, threads=1, repeats=2)
    assert min(found.operator, found.body, found.topk, found.copy) > 0
    overhead = benchmark_overhead(repeats=1)
    assert overhead.loading > 0


@pytest.mark.usefixtures("tiny")
def test_command(tmp_path: Path) -> None:
    arguments = ["bench", "ops", "--architecture", "tiny", "--weights", "fp32", "--weights", "fp16", "--tokens", "1"]
    arguments += ["--repeats", "2", "--threads", "1", "--clock", "cpu", "--memory", "1", "--pattern", "2:4"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "numbers.json")])
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert [(p["modules"], p["weights"]) for p in numbers["products"]] == [
        (modules, weights) for weights in ("fp32", "fp16") for modules in ("q, o", "k, v", "gate, up", "down")
    ]
    assert numbers["memory"] == 1_000_000
    read = OperatorBenchmark.from_dict(numbers)
    assert json.loads(json.dumps(read.to_dict())) == numbers
    assert read.to_markdown() in result.output


@pytest.mark.usefixtures("tiny")
def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"known are tiny"):
        benchmark_operators("huge")
    result = CliRunner().invoke(app, ["bench", "ops", "--architecture", "tiny", "--json", str(tmp_path)])
    assert result.exit_code == 2
    assert "is a folder" in result.output
    result = CliRunner().invoke(app, ["bench", "opps"])
    assert result.exit_code == 2
    assert "Did you mean ops?" in result.output


def test_processor_time_is_not_elapsed_time() -> None:
    import time

    assert Clock.cpu.seconds(lambda: time.sleep(0.02)) < 0.02 <= Clock.wall.seconds(lambda: time.sleep(0.02))
