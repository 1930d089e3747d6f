"""Time, memory and disk of each stage of a run, from shapes, the recipe's numbers and this machine's speed.

What is no product of matrices is counted in its seconds on a machine of `REFERENCE` multiply-accumulates a second, and
scaled by what the short measurement finds: a machine that is busy or slow is so at everything. The factors come from
measured runs of SmolLM2-135M and of tiny models.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nm_export.calibration.budget import ALLOCATION_WINDOW, ALLOCATION_WINDOWS
from nm_export.estimates.rates import Rates
from nm_export.estimates.shapes import Shapes
from nm_export.recipe import Recipe, TextSection

REFERENCE = 33e9
"""Multiply-accumulates a second of one core, float32, for which the constants below hold."""
PROCESS = 600_000_000
"""Bytes of a process with PyTorch, transformers and ONNX Runtime, before there is a model."""
SPARSE = 2.0
"""Time of a pass of the sparse model in PyTorch, in passes of the dense one: it selects, and multiplies densely."""
VERIFY = 16.0
"""Dense passes over the text of verification: four roundings of the model, two ONNX backends, one of them slow, ..."""


@dataclass(frozen=True)
class Cost:
    """What a stage would take.

    Attributes:
        stage: its name.
        seconds: its time.
        memory: bytes of memory at its peak, pages of mapped files among them.
        mapped: bytes of these pages, which the system takes back when it needs the room; with them, copies that ONNX
            Runtime makes where there is room.
    """

    stage: str
    seconds: float
    memory: int
    mapped: int

    @property
    def held(self) -> int:
        """Bytes that the stage cannot do without."""
        return self.memory - self.mapped


@dataclass(frozen=True)
class Disk:
    """Bytes on the disk.

    Attributes:
        safetensors: of the weights and parameters.
        onnx: of `onnx/model.onnx.data`; 0 without an export.
        workspace: of what is there only while the run goes on.
    """

    safetensors: int
    onnx: int
    workspace: int


def disk(recipe: Recipe, shapes: Shapes, *, with_onnx: bool) -> Disk:
    """Estimate what would be written."""
    rewritten = _rewritten(shapes)
    new = sum(tensor.nbytes for tensor in shapes.new.values())
    kept = new + rewritten
    learned = kept if recipe.learning.mode != "none" else 0
    weights = kept if recipe.publish.weights == "reference" else None
    return Disk(
        shapes.safetensors_bytes() if weights is None else weights,
        shapes.onnx_bytes(recipe.onnx) if with_onnx else 0,
        kept + learned,
    )


def costs(
    recipe: Recipe, shapes: Shapes, rates: Rates, *, with_onnx: bool, computed: torch.dtype | None = None
) -> tuple[Cost, ...]:
    """Estimate every stage of a run, in order; `computed` is the type of the weights in memory, if not as stored."""
    return tuple(_costs(recipe, shapes, rates, with_onnx, computed or shapes.dtype))


def _costs(recipe: Recipe, shapes: Shapes, rates: Rates, with_onnx: bool, computed: torch.dtype) -> Iterator[Cost]:
    rows, columns = shapes.embedding
    linears = sum(linear.macs for linear in shapes.plan.linears)
    whole = linears + rows * columns
    slower = REFERENCE / rates.float_macs
    written = disk(recipe, shapes, with_onnx=with_onnx)
    write = rates.write or 100e6
    wider = computed != shapes.dtype
    memory = PROCESS + (shapes.parameters * computed.itemsize if wider else shapes.weight_bytes)
    held_out = recipe.held_out
    logits = 3 * 4 * held_out.sequence_length * rows

    from_gguf = recipe.model.source.endswith(".gguf") or recipe.model.source.startswith("sample:")
    # safetensors are mapped; what is converted, or written anew, is a copy
    mapped = 0 if from_gguf or wider or recipe.model.dtype != "auto" else shapes.weight_bytes - _rewritten(shapes)
    yield Cost("load", slower * (1 + shapes.parameters * (70e-9 if from_gguf else 3e-9)), memory, mapped)
    if held_out.enabled:
        yield Cost("evaluate_dense", _tokens(held_out) * whole / rates.macs, memory + logits, mapped)
    text = recipe.calibration
    batch = text.batch_size * text.sequence_length
    if recipe.sparsity.budget is not None:
        # a pass for each group, and one in which every linear is computed with every pattern
        probes = len(shapes.plan.input_groups) + 1 + len(recipe.sparsity.budget_patterns or ("",))
        seconds = probes * ALLOCATION_WINDOWS * ALLOCATION_WINDOW * whole * SPARSE / rates.macs
        yield Cost("allocate", seconds, memory + 3 * 4 * ALLOCATION_WINDOW * rows, mapped)
    passes = _calibration_passes(recipe, shapes)
    yield Cost(
        "calibrate",
        slower * (0.1 + linears * 1e-9)
        + _residual_seconds(shapes, rates)
        + passes * _tokens(text) * linears / rates.macs,
        memory
        + (batch * (columns * 4 + max(linear.in_features for linear in shapes.plan.linears)) * 4 if passes else 0),
        mapped,
    )
    learning = recipe.learning
    if learning.mode != "none":
        trained = learning.epochs * learning.num_samples * learning.sequence_length
        end_to_end = learning.mode == "end_to_end"
        # the dense model's output; forward and twice as much backward, with a selection; the next block's inputs
        macs = trained * (1 + 3 * SPARSE + (0 if end_to_end else SPARSE)) * (whole if end_to_end else linears)
        layers = sum(linear.name.endswith(("down_proj", "fc2", "dense_4h_to_h")) for linear in shapes.plan.linears) or 1
        numbers = 40 * columns * layers + 4 * rows if end_to_end else 40 * columns
        activations = 4 * learning.batch_size * learning.sequence_length * numbers
        yield Cost("learn", macs / rates.macs, memory + activations, mapped)
    yield Cost("write", slower * 0.1 + written.safetensors / write, memory, mapped)
    if with_onnx:
        quantizing = 0 if recipe.onnx.precision == "fp32" else 60e-9
        seconds = slower * (1 + shapes.parameters * (20e-9 + quantizing)) + written.onnx / write
        # the other exporter makes its graph in memory
        streamed = written.onnx if shapes.has_builder and recipe.onnx.exporter != "generic" else 0
        yield Cost("onnx", seconds, memory + written.onnx, mapped + streamed)
    if recipe.verify.enabled:
        tokens = recipe.verify.num_tokens
        quantized = with_onnx and recipe.onnx.precision != "fp32"
        seconds = slower * 6 + tokens * whole * (VERIFY if with_onnx else 1) / rates.float_macs
        # the reloaded model lives in another process; a session holds the file's pages and a packed copy of them
        sessions = shapes.parameters * 4 if quantized else 0
        memory_of_all = memory + 2 * written.onnx + sessions + logits
        yield Cost("verify", seconds, memory_of_all, mapped + 2 * written.onnx)
    if held_out.enabled:
        macs = _tokens(held_out) * (linears * SPARSE + rows * columns)
        yield Cost("evaluate", macs / rates.macs, memory + logits, mapped)
        tokens = min(held_out.num_samples, 2) * min(held_out.sequence_length, 512)
        yield Cost("layers", tokens * linears * 2 * SPARSE / rates.macs, memory, mapped)
    if with_onnx and recipe.benchmark.enabled:
        seconds = _benchmark_seconds(recipe, shapes, rates, whole) + written.onnx / write
        # both graphs, each with a packed copy, after the model itself is out of the way
        yield Cost("benchmark", seconds, memory + 4 * written.onnx, mapped + 4 * written.onnx)


def _benchmark_seconds(recipe: Recipe, shapes: Shapes, rates: Rates, whole: int) -> float:
    """A dense graph is made; then both read prompts and make tokens, whose time is that of reading the weights."""
    settings = recipe.benchmark
    runtimes = 2 if shapes.has_builder and recipe.onnx.exporter != "generic" else 1
    token = shapes.onnx_bytes(recipe.onnx) / rates.read
    calls = 2 * runtimes * (settings.repeats + 1)
    runs = sum(prompt * whole / rates.float_macs + settings.new_tokens * token for prompt in settings.prompts)
    return REFERENCE / rates.float_macs * (1 + shapes.parameters * 20e-9) + calls * runs


def _rewritten(shapes: Shapes) -> int:
    """Bytes of weights that are pruned once and for all."""
    pruned = (linear for linear in shapes.plan.pruned if linear.scheme and linear.scheme.prune == "weights")
    return sum(linear.macs for linear in pruned) * shapes.dtype.itemsize


def _tokens(section: TextSection) -> int:
    return section.num_samples * section.sequence_length


def _calibration_passes(recipe: Recipe, shapes: Shapes) -> float:
    """Dense passes over the calibration text: one for statistics, two sparse ones for calibrated biases."""
    schemes = {linear.scheme for linear in shapes.plan.pruned if linear.scheme}
    statistics = any(
        scheme.score in ("clact", "smoothquant") or scheme.shift in ("static_channel", "static_scalar")
        for scheme in schemes
    )
    return statistics * 1.15 + any(scheme.output_bias == "calibrated" for scheme in schemes) * 2 * SPARSE


def _residual_seconds(shapes: Shapes, rates: Rates) -> float:
    """Randomised decompositions of the weights: some twelve products with a few vectors more than the rank."""
    macs = sum(
        12 * linear.macs * (linear.scheme.residual_rank + 16)
        for linear in shapes.plan.pruned
        if linear.scheme and linear.scheme.residual_rank
    )
    return macs / rates.float_macs
