"""Operators of an architecture: products, the selection and what the library costs by itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from nm_export.benchmark.machine import Machine, available_cores, last_level_cache, measure_machine
from nm_export.benchmark.overhead import Overhead, benchmark_overhead
from nm_export.benchmark.products import Product, ProductSettings, benchmark_products
from nm_export.benchmark.report import Report, table
from nm_export.benchmark.selection import Selection, benchmark_selection
from nm_export.benchmark.shapes import architecture as known_architecture
from nm_export.benchmark.storage import Storage
from nm_export.benchmark.timing import Clock, Ratio
from nm_export.progress import steps

DEFAULT_TOKENS = (1, 4, 16, 128, 512)
DEFAULT_FORMATS = ("fp32", "fp16", "bf16", "int8", "int4", "int4:128")


@dataclass(frozen=True)
class OperatorBenchmark(Report):
    """The result of `benchmark_operators`.

    Attributes:
        architecture: whose shapes.
        products: in the order of measurement.
        selection: NMTopK and its rivals.
        overhead: of calls, and of loading.
        machine: where.
        clock: what was measured, "wall" or "cpu".
        memory: bytes of weights that were cycled through.
        shared_selection: whether a selection served all products of a run.
        command: that measures it again.
    """

    architecture: str
    products: tuple[Product, ...]
    selection: Selection
    overhead: Overhead
    machine: Machine
    clock: str
    memory: int
    shared_selection: bool
    command: str

    kind = "operators"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "OperatorBenchmark":
        """Read what `to_dict` gave."""
        products = (Product(**{**p, "ratio": Ratio(**p["ratio"])}) for p in values["products"])
        return cls(
            architecture=values["architecture"],
            products=tuple(products),
            selection=Selection(**values["selection"]),
            overhead=Overhead(**values["overhead"]),
            machine=Machine(**values["machine"]),
            clock=values["clock"],
            memory=values["memory"],
            shared_selection=values["shared_selection"],
            command=values["command"],
        )

    def to_markdown(self) -> str:
        """Return the tables, ratios first."""
        parts = []
        for (weights, pattern), group in groupby(self.products, key=lambda p: (p.weights, p.pattern)):
            parts += [f"**{self.architecture}, {pattern}, {weights}**", self._product_table(list(group))]
        return "\n\n".join([*parts, *self._notes(), self._selection_table(), self._overhead_table()])

    def _product_table(self, products: Sequence[Product]) -> str:
        header = ["linear", "K x O", "tokens", "ratio", "quartiles", "sparse, ms", "dense, ms", "MB"]
        header += ["sparse, of bandwidth", "dense", "sparse, of peak", "dense"]
        rows = []
        for p in products:
            moved, computed = p.sparse_bytes / p.sparse_seconds, p.sparse_flops / p.sparse_seconds
            rows.append(
                [
                    p.modules,
                    f"{p.K} x {p.O}",
                    str(p.tokens),
                    f"**{p.ratio.value:.2f}**",
                    f"{p.ratio.low:.2f} to {p.ratio.high:.2f}",
                    f"{p.sparse_seconds * 1e3:.3f}",
                    f"{p.dense_seconds * 1e3:.3f}",
                    f"{p.sparse_bytes / 1e6:.1f}",
                    f"{moved / self.machine.bandwidth:.0%}",
                    f"{p.dense_bytes / p.dense_seconds / self.machine.bandwidth:.0%}",
                    f"{computed / self.machine.peak:.0%}",
                    f"{p.dense_flops / p.dense_seconds / self.machine.peak:.0%}",
                ]
            )
        return table(header, rows)

    def _notes(self) -> list[str]:
        time = "elapsed time" if self.clock == Clock.wall else "processor time"
        sparse = "the sparse product" if self.shared_selection else "NMTopK and the sparse product"
        return [
            f"Ratio: time of ONNX Runtime's dense product over that of {sparse}, median over "
            "rounds in which both ran once, with quartiles. MB: what the sparse product must read and write; of the "
            "weight, rows that some token keeps. Shares of bandwidth and peak: what must be moved and multiplied in "
            f"that time, for the sparse and then the dense product; {time}; weights cycle through "
            f"{self.memory / 1e6:,.0f} MB.",
            f"Machine: {self.machine.to_markdown()}.",
        ]

    def _selection_table(self) -> str:
        s = self.selection
        rows = [
            [name, f"{seconds * 1e6:,.0f}", f"{seconds / s.copy:.2f}", f"{seconds / s.operator:.2f}"]
            for name, seconds in (
                ("copy", s.copy),
                ("NMTopK", s.operator),
                ("torch.topk, without putting in place", s.topk),
                ("function body, standard operators", s.body),
            )
        ]
        header = [f"selection, {s.pattern} of [{s.tokens}, {s.K}]", "µs", "over copy", "over NMTopK"]
        return table(header, rows)

    def _overhead_table(self) -> str:
        o = self.overhead
        rows = [
            ["one call of NMSparseMatMul, 16 x 16", f"{o.sparse_product * 1e6:.2f} µs"],
            ["one call of NMTopK, 16 channels", f"{o.selection * 1e6:.2f} µs"],
            ["one call of ONNX Runtime's MatMul, 16 x 16", f"{o.dense_product * 1e6:.2f} µs"],
            ["loading the library", f"{o.loading * 1e3:.2f} ms"],
        ]
        return table(["overhead", "time"], rows)


def benchmark_operators(
    architecture: str,
    *,
    tokens: Sequence[int] = DEFAULT_TOKENS,
    patterns: Sequence[str] = ("8:16",),
    weights: Sequence[str] = DEFAULT_FORMATS,
    threads: int | None = None,
    repeats: int = 15,
    clock: Clock = Clock.wall,
    memory: int | None = None,
    shared_selection: bool = False,
    command: str = "",
) -> OperatorBenchmark:
    """Time every distinct linear shape of an architecture against ONNX Runtime's products of equal weights.

    Args:
        architecture: name in `shapes.ARCHITECTURES`.
        tokens: numbers of rows of the input.
        patterns: `"N:M"` or `"P%"`.
        weights: formats, see `Storage.parse`.
        threads: of each session; None takes all cores.
        repeats: rounds, of which medians count.
        clock: what to measure.
        memory: bytes of weights to cycle through; None is twice the last-level cache.
        shared_selection: see `ProductSettings`.
        command: that called this, for the record.

    Raises:
        UserError: an unknown architecture or format, a pattern that does not fit, or packages are missing.
        NMExportError: a product is wrong, so that its time says nothing.
    """
    shapes = known_architecture(architecture).shapes()
    formats = [Storage.parse(text) for text in weights]
    threads = threads or available_cores()
    memory = memory or 2 * last_level_cache()
    settings = ProductSettings(shapes, tokens, patterns, formats, threads, repeats, clock, memory, shared_selection)
    before = measure_machine(threads, clock, memory)  # and once more at the end: other jobs may come and go
    products = []
    with steps(architecture, settings.count) as advance:
        for product in benchmark_products(settings):
            products.append(product)
            advance(f"{product.K} x {product.O}, {product.weights}, tokens {product.tokens}: {product.ratio.value:.2f}")
    return OperatorBenchmark(
        architecture,
        tuple(_by_format(products, [str(form) for form in formats])),
        benchmark_selection(threads=threads, repeats=repeats, clock=clock),
        benchmark_overhead(repeats=repeats, clock=clock),
        before.at_best(measure_machine(threads, clock, memory)),
        str(clock),
        memory,
        shared_selection,
        command,
    )


def _by_format(products: Sequence[Product], formats: Sequence[str]) -> Iterator[Product]:
    """Products of one format and pattern together."""
    patterns = list(dict.fromkeys(p.pattern for p in products))
    for form in formats:
        for pattern in patterns:
            yield from (p for p in products if p.weights == form and p.pattern == pattern)
