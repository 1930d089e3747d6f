"""What the kernels are meant to reach, and what a run reached."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nm_export.benchmark.model import ModelBenchmark, Row
from nm_export.benchmark.operators import OperatorBenchmark
from nm_export.benchmark.products import Product
from nm_export.benchmark.report import Report

_LARGE = ("mistral-7b", "llama-3.1-8b", "qwen2.5-7b")
_GENAI = "onnxruntime-genai"

_PROFILES = "[kernels.md](kernels.md#what-keeps-small-products-from-more)"
_SHORT_ROWS = (
    "4096 x 1024 takes 0.1 to 0.3 ms, of which waking a thread takes 0.02, and one core reads half of its short rows "
    f"at a lower rate than all of them in order ({_PROFILES})."
)
_SELECTION = (
    "16 numbers take 20 cycles, of which the ports ask for 10 to 12, and a copy in the same cache takes 5 "
    "([kernels.md](kernels.md#selection))."
)
_LONG_PROMPTS = "the longer the prompt, the more of the time is attention, which is the same in both."
_SMALL_LAYERS = f"its 210 products take 10 to 40 µs each, and 120 selections come on top ({_PROFILES}); {_LONG_PROMPTS}"


@dataclass(frozen=True)
class Measured:
    """One number that a target is about, where it was found, and the command that measures it."""

    value: float
    where: str
    command: str


@dataclass(frozen=True)
class Target:
    """A bound that every number it is about should keep.

    Attributes:
        text: what it is about.
        bound: the least value, or the largest if `at_most`.
        unit: of the bound.
        find: the numbers in a report.
        at_most: whether less is better.
        reason: why it is missed where it is, from profiles; "" where nobody has looked.
    """

    text: str
    bound: float
    unit: str
    find: Callable[[Report], Iterator[Measured]]
    at_most: bool = False
    reason: str = ""

    def measured(self, reports: Sequence[Report]) -> list[Measured]:
        """All numbers, the worst first."""
        found = [number for report in reports for number in self.find(report)]
        return sorted(found, key=lambda number: number.value, reverse=self.at_most)

    def met(self, number: Measured) -> bool:
        """Whether a number keeps the bound."""
        return number.value <= self.bound if self.at_most else number.value >= self.bound


def _products(wanted: Callable[[Product], bool]) -> Callable[[Report], Iterator[Measured]]:
    def find(report: Report) -> Iterator[Measured]:
        if isinstance(report, OperatorBenchmark) and report.architecture in _LARGE:
            for p in report.products:
                if wanted(p):
                    tokens = f"{p.tokens} token{'' if p.tokens == 1 else 's'}"
                    yield Measured(p.ratio.value, f"{p.K} x {p.O}, {p.pattern}, {p.weights}, {tokens}", report.command)

    return find


def _decode(weights: str, *patterns: str) -> Callable[[Report], Iterator[Measured]]:
    return _products(lambda p: p.tokens == 1 and p.weights == weights and p.pattern in patterns)


def _batch(*tokens: int) -> Callable[[Report], Iterator[Measured]]:
    return _products(lambda p: p.tokens in tokens and p.weights == "fp32" and p.pattern == "8:16")


def _operators(value: Callable[[OperatorBenchmark], float], where: str) -> Callable[[Report], Iterator[Measured]]:
    def find(report: Report) -> Iterator[Measured]:
        if isinstance(report, OperatorBenchmark):
            yield Measured(value(report), where, report.command)

    return find


def _model(precision: str, value: Callable[[Row], float]) -> Callable[[Report], Iterator[Measured]]:
    def find(report: Report) -> Iterator[Measured]:
        if isinstance(report, ModelBenchmark) and report.title.startswith("smollm2"):
            if report.precision.split(",")[0] != precision:
                return
            for row in report.rows:
                if row.runtime == _GENAI:
                    yield Measured(value(row), f"{report.title}, prompt of {row.prompt}", report.command)

    return find


TARGETS = (
    Target("One token, 7B shapes, float32, 8:16, over MatMul", 1.9, "x", _decode("fp32", "8:16")),
    Target("One token, 7B shapes, float32, 2:4 and 16:32, over MatMul", 1.8, "x", _decode("fp32", "2:4", "16:32")),
    Target(
        "One token, 7B shapes, float16, 8:16, over float32 MatMul",
        3.2,
        "x",
        _decode("fp16", "8:16"),
        reason=_SHORT_ROWS,
    ),
    Target(
        "One token, 7B shapes, bfloat16, 8:16, over float32 MatMul",
        3.2,
        "x",
        _decode("bf16", "8:16"),
        reason=_SHORT_ROWS,
    ),
    Target(
        "One token, 7B shapes, 8 bits, block 32, over MatMulNBits",
        1.5,
        "x",
        _decode("int8, block 32", "8:16"),
        reason=_SHORT_ROWS,
    ),
    Target(
        "One token, 7B shapes, 4 bits, block 32, over MatMulNBits",
        1.3,
        "x",
        _decode("int4, block 32", "8:16"),
        reason=_SHORT_ROWS,
    ),
    Target("One token, 7B shapes, 4 bits, block 128, over MatMulNBits", 1.0, "x", _decode("int4, block 128", "8:16")),
    Target("128 and 512 tokens, 7B shapes, float32, 8:16, over MatMul", 1.15, "x", _batch(128, 512)),
    Target("4 and 16 tokens, 7B shapes, float32, 8:16, over MatMul", 0.97, "x", _batch(4, 16)),
    Target(
        "NMTopK of [128, 4096] over a copy of it",
        3.0,
        "x",
        _operators(lambda report: report.selection.operator / report.selection.copy, "8:16"),
        at_most=True,
        reason=_SELECTION,
    ),
    Target(
        "The standard-op graph over NMTopK",
        20.0,
        "x",
        _operators(lambda report: report.selection.body / report.selection.operator, "8:16"),
    ),
    Target(
        "What the library adds to an operator's call",
        5.0,
        "µs",
        _operators(lambda r: max(r.overhead.sparse_product, r.overhead.selection) * 1e6, "16 channels, one token"),
        at_most=True,
    ),
    Target(
        "Loading the library",
        20.0,
        "ms",
        _operators(lambda report: report.overhead.loading * 1e3, "new process"),
        at_most=True,
    ),
    Target(
        "SmolLM2, every linear 8:16, genai, decode",
        1.45,
        "x",
        _model("fp32", lambda row: row.decode_ratio),
        reason=_LONG_PROMPTS,
    ),
    Target("SmolLM2, every linear 8:16, genai, prefill", 1.0, "x", _model("fp32", lambda row: row.prefill_ratio)),
    Target(
        "SmolLM2, every linear 8:16, int4, genai, decode",
        1.15,
        "x",
        _model("int4", lambda row: row.decode_ratio),
        reason=_SMALL_LAYERS,
    ),
)
"""In the order of the page."""
