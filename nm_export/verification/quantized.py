"""Graphs with quantized weights: compared with the calibrated model that holds, for a while, the weights of the graph.

What quantization changes is thereby apart from what an operator may do wrong. That the graph's weights are the model's
is checked block by block, against the error that rounding a block to its grid can make.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nm_export.errors import NMExportError
from nm_export.evaluation import Divergence, divergence, torch_logits
from nm_export.onnx.matmul_nbits import MATMUL_NBITS
from nm_export.onnx.quantize import WeightFormat
from nm_export.onnx.session import data_path
from nm_export.onnx.sparse_matmul_nbits_function import NM_SPARSE_MATMUL_NBITS
from nm_export.onnx.stored_weights import StoredWeight, stored_format, stored_weights

_HALF_UNIT = 2.0**-11  # of a scale that is rounded to float16
_CHUNK = 1 << 22  # weights compared at once
_FLOAT32 = 1  # accuracy_level: inputs stay float32
_PRODUCTS = (MATMUL_NBITS, NM_SPARSE_MATMUL_NBITS)
_NOTHING = 1e-30  # a step whose size says nothing: near the smallest numbers, scales have few digits


@contextmanager
def stored_weights_in(model: Any, path: Path) -> Iterator[None]:
    """Let `model` compute with the weights of the graph at `path`, and give it its own back.

    Output scales stay the model's: they are taken out of the graph's weights. Shifts and offsets are float32 in both.
    Model and graph are in memory together.

    Raises:
        NMExportError: a weight of the graph is not the model's to within its format; one is missing.
    """
    format = stored_format(path)
    assert format is not None
    before: dict[str, nn.Parameter] = {}
    try:
        for stored in stored_weights(path):
            module = model.get_submodule(stored.module)
            before.setdefault(stored.module, module.weight)
            _check_weight(stored, before[stored.module], getattr(module, "nm_scale", None), format)
            if module.weight is before[stored.module]:  # a new one: the embedding's may be the output layer's too
                module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)
            weight = torch.from_numpy(stored.weight).T
            scale = getattr(module, "nm_scale", None)
            if scale is not None:
                scale = scale.cpu()[stored.start : stored.stop, None]
                weight = torch.where(scale == 0, 0.0, weight / scale)
            with torch.no_grad():
                module.weight[stored.start : stored.stop] = weight.to(module.weight)
        for module in model.nm_modules().values():
            module.keep_offset()  # the graph's is that of the float weight, too
        missing = model.nm_modules().keys() - before.keys()
        if missing:
            raise NMExportError(f"Verification failed: {path} holds no quantized weight of {min(missing)}.")
        yield
    finally:
        for name, parameter in before.items():
            model.get_submodule(name).weight = parameter


@contextmanager
def float_inputs(folder: Path) -> Iterator[Path]:
    """A folder for a while whose graph is that of `folder`, except that no product rounds its inputs to 8 bits.

    Weights are linked to. The rounding of inputs moves more channels than everything that is looked for.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="nm_export-verify-") as directory:
        target = Path(directory)
        (target / "onnx").mkdir()
        for name in ("config.json", "generation_config.json"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
        path = folder / "onnx" / "model.onnx"
        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type in _PRODUCTS and attribute.name == "accuracy_level":
                    attribute.i = _FLOAT32
        onnx.save(model, target / "onnx" / path.name)
        data_path(target / "onnx" / path.name).symlink_to(data_path(path).resolve())
        yield target


def against_dense(folder: Path, model: Any, sequences: Any) -> dict[str, Divergence]:
    """Measure what quantization and sparsity cost, each alone and together, against the dense float model.

    Args:
        folder: published folder with a quantized graph.
        model: the calibrated `NMSparseForCausalLM`, with its own weights.
        sequences: token ids, as in `divergence`.

    Returns:
        `dense` (the reference), `dense_int4` (or int8; a graph of the dense model, of the same format), `sparse`, and
        `sparse_int4` (the folder's graph, compiled).
    """
    from nm_export.onnx import NMSparseORTModelForCausalLM
    from nm_export.onnx.dense_graph import build_dense_twin

    format = stored_format(folder / "onnx" / "model.onnx")
    assert format is not None

    def dense(ids: Tensor) -> Tensor:
        with model.dense():
            return torch_logits(model)(ids)

    with tempfile.TemporaryDirectory(prefix="nm_export-verify-") as directory:
        twin = NMSparseORTModelForCausalLM.from_pretrained(
            build_dense_twin(model, folder, Path(directory, "dense")), spinning=False
        )
        quantized = NMSparseORTModelForCausalLM.from_pretrained(folder, library=True, spinning=False)
        models = {
            f"dense_{format.name}": torch_logits(twin),
            "sparse": torch_logits(model),
            f"sparse_{format.name}": torch_logits(quantized),
        }
        results = divergence(dense, models, sequences, "Measuring what quantization costs")
        del twin, quantized, models
    return {"dense": results.pop("reference"), **results}


def _check_weight(stored: StoredWeight, own: Tensor, scale: Tensor | None, format: WeightFormat) -> None:
    """Compare the graph's weight with the model's, block by block."""
    rows, got = own.detach()[stored.start : stored.stop], torch.from_numpy(stored.weight)
    size = max(1, _CHUNK // max(rows.shape[1], 1))
    limit = _largest_error_of_format(format, stored.pruned) * 1.001
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        float_part = rows[part].cpu().float()
        if scale is not None:
            float_part = float_part * scale.cpu()[stored.start : stored.stop][part, None]
        got_part = got[:, part].T
        error = _largest_error(float_part, got_part, format)
        if not error <= limit:
            raise NMExportError(
                f"Verification failed: the weight of {stored.module} in the ONNX graph is not the calibrated model's "
                f"in {format.name} (a block is {error:.2g} steps away)."
            )


def _largest_error_of_format(format: WeightFormat, pruned: bool) -> float:
    """Largest root mean square error of a block, in steps of the grid that spans it.

    Nearest codes are within half a step, and what a float16 scale is off grows with the codes. MatMulNBits cuts the end
    of a block that its larger half of the codes is not given to.
    """
    reach = 2 ** (format.bits - 1) if format.symmetric else 2**format.bits
    return 0.5 + reach * _HALF_UNIT if pruned else 1.0


def _largest_error(weight: Tensor, quantized: Tensor, format: WeightFormat) -> float:
    """Largest root mean square error of a block along the last axis, in steps of the grid that spans the block."""

    def blocks(matrix: Tensor) -> Tensor:
        return F.pad(matrix, (0, -matrix.shape[-1] % format.block_size)).unflatten(-1, (-1, format.block_size))

    expected = blocks(weight)
    if format.symmetric:
        step = expected.abs().amax(-1) / (2 ** (format.bits - 1) - 1)
    else:
        step = (expected.amax(-1).clamp(min=0) - expected.amin(-1).clamp(max=0)) / (2**format.bits - 1)
    error = (blocks(quantized) - expected).square().mean(-1).sqrt()
    return float((error / step.clamp(min=_NOTHING)).max())
