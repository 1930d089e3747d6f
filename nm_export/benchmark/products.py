"""A pruned product against ONNX Runtime's dense one, shape by shape.

One graph for each rival computes products with as many weights as exceed twice the last-level cache, so that every
weight comes from memory. The sparse graph selects before every product, though linears of a model share selections;
or once for all, to see the product alone.
"""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nm_export.benchmark.machine import last_level_cache
from nm_export.benchmark.rivals import Rival, StoredWeights, dense_rival, sparse_rival
from nm_export.benchmark.shapes import Shape
from nm_export.benchmark.storage import Storage, dense_tensors, sparse_tensors
from nm_export.benchmark.timing import Clock, Ratio, ratio, take_turns
from nm_export.errors import NMExportError, UserError
from nm_export.onnx.extras import require
from nm_export.recipe.patterns import check_pattern


@dataclass(frozen=True)
class Product:
    """One measurement: a shape, a pattern, a format of weights and a number of tokens.

    Attributes:
        modules: which linears have the shape.
        K: input channels.
        O: output channels.
        tokens: rows of the input.
        pattern: `"N:M"` or `"P%"`.
        weights: format of the sparse product's weights; the dense ones are float32, or quantized alike.
        ratio: dense over sparse time.
        dense_seconds: median of one dense product.
        sparse_seconds: median of one sparse product with its selection.
        dense_bytes: what the dense product must read and write.
        sparse_bytes: the same of the sparse one: of the weight, the rows that some token keeps; of the scales, all.
        dense_flops: float operations of the dense product.
        sparse_flops: those of the sparse one: kept channels only.
        repeats: rounds that were measured.
    """

    modules: str
    K: int
    O: int  # noqa: E741
    tokens: int
    pattern: str
    weights: str
    ratio: Ratio
    dense_seconds: float
    sparse_seconds: float
    dense_bytes: int
    sparse_bytes: int
    dense_flops: int
    sparse_flops: int
    repeats: int


@dataclass(frozen=True)
class ProductSettings:
    """What is measured, and how.

    Attributes:
        shapes: of the weights.
        tokens: numbers of rows of the input.
        patterns: what is kept of each row.
        formats: of the weights.
        threads: of each session.
        repeats: rounds; the medians count. Long ones stop after 20 seconds, but not before the third.
        clock: what to measure.
        memory: bytes of weights to cycle through; None is twice the last-level cache.
        shared_selection: whether the sparse graph selects once a run, so that a selection's time all but vanishes,
            rather than before every product.
    """

    shapes: Sequence[Shape]
    tokens: Sequence[int]
    patterns: Sequence[str]
    formats: Sequence[Storage]
    threads: int
    repeats: int
    clock: Clock = Clock.wall
    memory: int | None = None
    shared_selection: bool = False

    @property
    def count(self) -> int:
        """Number of measurements."""
        return len(self.shapes) * len(self.tokens) * len(self.patterns) * len(self.formats)


def benchmark_products(settings: ProductSettings) -> Iterator[Product]:
    """Measure every combination, one after the other.

    Raises:
        UserError: a pattern that does not fit a shape, or a package or the compiled operators are not installed.
        NMExportError: a product is wrong, so that its time says nothing.
    """
    require("onnx", "onnx")
    require("onnxruntime", "onnx")
    for shape in settings.shapes:
        for pattern in settings.patterns:
            kept_channels(pattern, shape.K)  # a mistake is told before anything is measured
    for shape in settings.shapes:
        weight = np.random.default_rng(0).standard_normal((shape.K, shape.O), np.float32) / np.float32(shape.K**0.5)
        for form in settings.formats:
            with tempfile.TemporaryDirectory(prefix="nm_export-bench-") as folder:
                yield from _products(settings, shape, weight, form, Path(folder))


def _products(
    settings: ProductSettings, shape: Shape, weight: np.ndarray, form: Storage, folder: Path
) -> Iterator[Product]:
    memory = settings.memory or 2 * last_level_cache()
    dense_weights = StoredWeights.write(folder / "dense.data", dense_tensors(weight, form), memory)
    sparse_weights = StoredWeights.write(folder / "sparse.data", sparse_tensors(weight, form), memory)
    dense = dense_rival(dense_weights, form, shape.K, shape.O, settings.threads)
    for pattern in settings.patterns:
        keep = kept_channels(pattern, shape.K)
        sparse = sparse_rival(
            sparse_weights, form, shape.K, shape.O, keep, settings.threads, shared=settings.shared_selection
        )
        for tokens in settings.tokens:
            x = np.random.default_rng(tokens).standard_normal((tokens, shape.K), np.float32)
            pruned = prune(x, *keep)
            _check(dense, x, x, weight, form, "dense")
            _check(sparse, x, pruned, weight, form, "sparse")
            seconds = take_turns({"dense": dense.bind(x), "sparse": sparse.bind(x)}, settings.repeats, settings.clock)
            dense_times = [run / dense.copies for run in seconds["dense"]]
            sparse_times = [run / sparse.copies for run in seconds["sparse"]]
            activations = tokens * (shape.K + shape.O) * 4
            row_share = np.count_nonzero(pruned.any(axis=0)) / shape.K
            dropped_bytes = round(sparse_weights.tensors["weight"].nbytes * (1 - row_share))
            yield Product(
                modules=shape.modules,
                K=shape.K,
                O=shape.O,
                tokens=tokens,
                pattern=pattern,
                weights=str(form),
                ratio=ratio(dense_times, sparse_times),
                dense_seconds=statistics.median(dense_times),
                sparse_seconds=statistics.median(sparse_times),
                dense_bytes=dense_weights.nbytes + activations,
                sparse_bytes=sparse_weights.nbytes - dropped_bytes + activations,
                dense_flops=2 * x.size * shape.O,
                sparse_flops=2 * int(np.count_nonzero(pruned)) * shape.O,
                repeats=len(dense_times),
            )


def kept_channels(pattern: str, K: int) -> tuple[int, int]:
    """How many channels n are kept of each m neighbours: of all `K` for `"P%"`.

    Raises:
        UserError: not a pattern, or m does not divide K.
    """
    try:
        plain = check_pattern(pattern)
    except ValueError as error:
        raise UserError(f"--pattern: {error}.") from None
    if plain.endswith("%"):
        return max(1, round(K * float(plain[:-1]) / 100)), K
    n, m = map(int, plain.split(":"))
    if K % m:
        raise UserError(f"--pattern {plain}: {m} does not divide the {K} input channels of a layer.")
    return n, m


def prune(x: np.ndarray, n: int, m: int) -> np.ndarray:
    """Keep the n largest magnitudes of each m neighbours of `x` `[tokens, K]`; zeros elsewhere."""
    groups = x.reshape(-1, m).copy()
    dropped = np.argsort(-np.abs(groups), axis=1, kind="stable")[:, n:]
    np.put_along_axis(groups, dropped, 0, axis=1)
    return groups.reshape(x.shape)


def _check(rival: Rival, x: np.ndarray, multiplied: np.ndarray, weight: np.ndarray, form: Storage, name: str) -> None:
    """Raise an NMExportError unless the product of two rows is right."""
    expected = multiplied[:2] @ weight
    difference = float(np.abs(rival.first(x[:2]) - expected).max() / np.abs(expected).max())
    if not difference <= form.tolerance:
        K, O = weight.shape  # noqa: E741
        raise NMExportError(
            f"The {name} product of {K} x {O}, {form}, differs from the expected one by {difference:.1e} of its "
            f"largest element, where {form.tolerance:.0e} is accepted: its time would say nothing."
        )
