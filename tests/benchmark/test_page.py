"""The page and its picture, made of numbers that were not measured."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nm_export.benchmark.machine import Machine
from nm_export.benchmark.model import ModelBenchmark, Row
from nm_export.benchmark.operators import OperatorBenchmark
from nm_export.benchmark.overhead import Overhead
from nm_export.benchmark.page import to_markdown
from nm_export.benchmark.products import Product
from nm_export.benchmark.roofline import draw_roofline
from nm_export.benchmark.selection import Selection
from nm_export.benchmark.timing import Ratio
from nm_export.cli import app
from nm_export.errors import UserError

MACHINE = Machine("Example", 2, 2, 2**20, "Linux", {"onnxruntime": "1"}, bandwidth=2e10, peak=4e11)


def product(ratio: float, tokens: int = 1, weights: str = "fp32") -> Product:
    return Product(
        modules="q, o",
        K=4096,
        O=4096,
        tokens=tokens,
        pattern="8:16",
        weights=weights,
        ratio=Ratio(ratio, ratio - 0.1, ratio + 0.1),
        dense_seconds=4e-3 * tokens,
        sparse_seconds=4e-3 * tokens / ratio,
        dense_bytes=64_000_000,
        sparse_bytes=32_000_000,
        dense_flops=33_000_000 * tokens,
        sparse_flops=16_500_000 * tokens,
        repeats=5,
    )


def operators(*products: Product) -> OperatorBenchmark:
    return OperatorBenchmark(
        "mistral-7b",
        products,
        Selection(128, 4096, "8:16", operator=3e-4, body=9e-3, topk=5e-3, copy=2e-4),
        Overhead(sparse_product=1e-6, selection=6e-6, dense_product=4e-7, loading=1e-3),
        MACHINE,
        "wall",
        10**9,
        False,
        "nm-export bench ops --architecture mistral-7b",
    )


MODEL = ModelBenchmark(
    "smollm2-all",
    "fp32",
    (Row("ONNX Runtime", 64, 1, 1, 0.1, 0.1), Row("onnxruntime-genai", 64, 1.0, 0.8, 0.03, 0.02)),
    5,
    24,
    "Example",
    "nm-export bench smollm2-all",
)


def rows(page: str) -> dict[str, list[str]]:
    """Cells of the target table by the target."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


def test_targets_are_judged_by_the_worst_number() -> None:
    page = rows(to_markdown([operators(product(1.95), product(1.85), product(1.2, 128)), MODEL]))
    decode = page["One token, 7B shapes, float32, 8:16, over MatMul"]
    assert decode[1] == "missed by 1 of 2"
    assert decode[2].startswith("1.85 (4096 x 4096")
    assert decode[3] == "1.95"
    assert page["128 and 512 tokens, 7B shapes, float32, 8:16, over MatMul"][1] == "met"
    assert page["One token, 7B shapes, bfloat16, 8:16, over float32 MatMul"][1] == "not measured"
    assert page["NMTopK of [128, 4096] over a copy of it"][1:3] == ["met", "1.50 (8:16)"]
    assert page["The standard-op graph over NMTopK"][1:3] == ["met", "30.00 (8:16)"]
    assert page["What the library adds to an operator's call"][1] == "missed by 1 of 1"
    assert page["SmolLM2, every linear 8:16, genai, decode"][1:3] == ["met", "1.50 (smollm2-all, prompt of 64)"]
    assert page["SmolLM2, every linear 8:16, int4, genai, decode"][1] == "not measured"


def test_shares_of_the_limits() -> None:
    text = operators(product(2.0)).to_markdown()
    cells = rows(text)["q, o"]
    assert cells[2] == "**2.00**"
    assert cells[-4:-2] == ["80%", "80%"]  # 32 MB in 2 ms and 64 MB in 4 ms, of 20 GB/s


def test_the_command_writes_page_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = []
    for name, report in (("ops", operators(product(1.9), product(1.0, 16, "int4, block 32"))), ("model", MODEL)):
        names.append(str(tmp_path / f"{name}.json"))
        Path(names[-1]).write_text(json.dumps(report.to_dict()))
    result = CliRunner().invoke(app, ["bench", "page", str(tmp_path / "page.md"), *names, "--note", "At night."])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.md").read_text()
    assert "(page.svg)" in page
    assert "\n\nAt night.\n\n" in page
    assert "nm-export bench smollm2-all" in page
    first = (tmp_path / "page.svg").read_bytes()
    draw_roofline(tmp_path / "again.svg", operators(product(1.9), product(1.0, 16, "int4, block 32")).products, MACHINE)
    assert (tmp_path / "again.svg").read_bytes() == first
    assert b"int4, block 32" in first


@pytest.mark.parametrize("content", ["[]", "{}", '{"kind": "model"}', "no JSON"])
def test_what_is_no_result(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    result = CliRunner().invoke(app, ["bench", "page", str(tmp_path / "page.md"), str(tmp_path / "a.json")])
    assert result.exit_code == 2
    assert "is not a result" in result.output
    assert not (tmp_path / "page.md").exists()


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"nm_export\[docs\]"):
        draw_roofline(tmp_path / "a.svg", [product(1.0)], MACHINE)
