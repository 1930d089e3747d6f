"""Which exporter writes the dense graph of a model: the graph builder of onnxruntime-genai where it can, else the
exporter of transformers, which takes nearly any architecture.

The builder is the better way where there is one: it is quicker, its attention is one operator that extends the cache in
place, and onnxruntime-genai runs what it wrote. Both are judged alike, by the logits of the model in torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from nm_export.errors import NMExportError, UserError
from nm_export.onnx.base_graph import (
    AUTHORS,
    BaseGraph,
    architecture,
    build_base_graph,
    check_base_graph,
    check_exportable,
)
from nm_export.onnx.generic_graph import build_generic_graph
from nm_export.progress import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_graph(
    model: "PreTrainedModel",
    tokenizer_dir: str | Path,
    directory: str | Path,
    *,
    exporter: str = "builder",
    opset: int | None = None,
    share_embedding: bool = True,
) -> BaseGraph:
    """Write the dense graph of `model` with one exporter, "builder" or "generic"; see `build_base_graph`.

    Raises:
        UserError: the model is nothing for this exporter, or one of its packages is missing.
        NMExportError: the exporter fails.
    """
    check_exportable(model, opset)
    if exporter == "generic":
        return build_generic_graph(model, directory, share_embedding=share_embedding)
    try:
        return build_base_graph(model, tokenizer_dir, directory, opset=opset, share_embedding=share_embedding)
    except (NMExportError, OSError):
        raise
    except Exception as error:  # the builder meets configurations that it was not written for
        raise NMExportError(
            f"The graph builder of onnxruntime-genai fails on {architecture(model)} ({type(error).__name__}: {error})."
        ) from error


def choose_graph(
    model: "PreTrainedModel",
    tokenizer_dir: str | Path,
    directory: str | Path,
    *,
    exporter: str = "auto",
    opset: int | None = None,
    share_embedding: bool = True,
) -> tuple[BaseGraph, float]:
    """Write the dense graph of `model`, and compare it with the model.

    Args:
        model: causal language model on the CPU, dense or `NMSparseForCausalLM`.
        tokenizer_dir: folder that AutoTokenizer loads.
        directory: existing empty folder to write to.
        exporter: "builder", "generic", or "auto" for the first of these that renders the model; a sentence says why it
            is the second.
        opset: version of the standard operators, 22.
        share_embedding: whether tied embeddings are stored once.

    Returns:
        The graph, and how far its logits are from the model's, as a share of the largest.

    Raises:
        UserError: no exporter takes the model, or a package is missing.
        NMExportError: none renders it.
    """
    check_exportable(model, opset)
    reasons: list[NMExportError] = []
    exporters = ("builder", "generic") if exporter == "auto" else (exporter,)
    for name in exporters:
        if reasons:
            say(f"{reasons[0]} {AUTHORS[name].capitalize()} takes over; onnxruntime-genai does not run its graphs.")
        try:
            graph = build_graph(
                model, tokenizer_dir, directory, exporter=name, opset=opset, share_embedding=share_embedding
            )
            return graph, check_base_graph(graph, model)
        except NMExportError as error:
            reasons.append(error)
            for path in Path(directory).iterdir():
                path.unlink()
    kind = UserError if all(isinstance(reason, UserError) for reason in reasons) else NMExportError
    advice = "set onnx.exporter to auto, or leave ONNX out" if exporter == "builder" else "leave ONNX out"
    raise kind(
        f"{architecture(model)} cannot be exported to ONNX; {advice} (--skip-onnx). {' '.join(map(str, reasons))}"
    ) from reasons[-1]
