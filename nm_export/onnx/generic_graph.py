"""The dense graph of a model of any architecture: traced by torch.export, translated by the exporter of transformers.

Where onnxruntime-genai has no builder for an architecture, this is the way: standard operators only, one graph for
prefill and decode with a cache that it returns longer than it got it, weights stored `K x O` and once.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nm_export.errors import NMExportError
from nm_export.onnx.base_graph import ALIGNMENT, OPSET, BaseGraph
from nm_export.onnx.extras import require
from nm_export.onnx.session import CACHE_KEY, CONCATENATED
from nm_export.onnx.traced_graph import TracedGraph
from nm_export.onnx.traced_model import TracedModel
from nm_export.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IR_VERSION = 10  # what opset 22 came with
_BATCH, _TOKENS, _CACHED = 2, 3, 5  # of the example that is traced: all different, and none of them 0 or 1


def build_generic_graph(model: "PreTrainedModel", directory: str | Path, *, share_embedding: bool = True) -> BaseGraph:
    """Write the dense graph of `model` into `directory`: model.onnx and model.onnx.data, float32.

    A sparse model gives the graph of its dense twin. The model itself is left as it is.

    Args:
        model: causal language model on the CPU, dense or `NMSparseForCausalLM`.
        directory: existing folder to write to.
        share_embedding: whether tied embeddings are stored once.

    Raises:
        UserError: a package is missing, or the model keeps something else than keys and values.
        NMExportError: the model cannot be traced or translated.
    """
    require("onnx_ir", "export")
    require("onnxscript", "export")
    import onnx_ir

    traced = TracedModel(model)
    program = _translate(traced)
    program.metadata_props.clear()
    program.metadata_props[CACHE_KEY] = CONCATENATED
    program.producer_name, program.producer_version, program.ir_version = "nm_export", "", _IR_VERSION
    graph = TracedGraph(program.graph)
    graph.name()
    products = graph.put_weights_in(traced.linears)
    tied = graph.tie(*traced.tied, products, share=share_embedding) if traced.tied else None
    graph.inline_small_constants()
    path = Path(directory) / "model.onnx"
    onnx_ir.save(
        program,
        path,
        external_data=f"{path.name}.data",
        size_threshold_bytes=0,
        max_workers=1,  # one transposed weight in memory at a time
        alignment=ALIGNMENT,
        align_threshold=ALIGNMENT,
    )
    return BaseGraph(path, products, tied, exporter="generic")


def _translate(traced: TracedModel) -> Any:
    """The `onnx_ir.Model` that the exporter of transformers makes, weights of the linears missing."""
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    past = traced.empty_cache(_BATCH, _CACHED)
    example: dict[str, Any] = {
        "input_ids": torch.ones(_BATCH, _TOKENS, dtype=torch.long),
        "attention_mask": torch.ones(_BATCH, _CACHED + _TOKENS, dtype=torch.long),
        "past": past,
    }
    free = torch.export.Dim.AUTO
    shapes = {
        "input_ids": {0: free, 1: free},
        "attention_mask": {0: free, 1: free},
        "past": [{0: free, 2: free} for _ in past],
    }
    exporter: Any = OnnxExporter
    try:
        with _silence():
            program = exporter().export(traced, example, OnnxConfig(dynamic_shapes=shapes, opset_version=OPSET)).program
    except Exception as error:  # whatever torch.export and the translation raise, each of many types
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise NMExportError(
            f"The exporter of transformers fails on {traced.architecture} ({type(error).__name__}: {reason[:200]})."
        ) from error
    for value in program.graph.inputs:
        if any(isinstance(value.shape[axis], int) for axis in (0, 2 if len(value.shape) == 4 else 1)):
            raise NMExportError(
                f"The exporter of transformers makes a graph of {traced.architecture} that takes {value.name} of one "
                f"size only, {value.shape}."
            )
    return program


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the progress and the warnings of torch, onnxscript and transformers out of ours."""
    before = logging.root.manager.disable
    with quiet_transformers(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
