"""The road from a sparse model in memory to a folder that ONNX Runtime opens, and onnxruntime-genai if it can."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nm_export.arguments import require_folder, require_sparse
from nm_export.calibration.budget import refuse_open_budget
from nm_export.calibration.neutral import refuse_neutral
from nm_export.errors import UserError
from nm_export.onnx.checking import check_graph
from nm_export.onnx.exporters import choose_graph
from nm_export.onnx.insert import insert_operators
from nm_export.onnx.pruned_inputs import pruned_inputs
from nm_export.onnx.quantize import weight_format
from nm_export.onnx.rewrite.quantized_product import check_width
from nm_export.onnx.weight_error import QuantizationReport
from nm_export.parameters import check_finite
from nm_export.plan import refuse_phases_of_lists
from nm_export.publishing.saved import record_verification
from nm_export.versions import installed_versions

if TYPE_CHECKING:
    from nm_export.modeling import NMSparseForCausalLM

_RECORDED = ("nm_export", "onnx", "onnxruntime", "onnxruntime-genai", "onnxscript", "torch", "transformers")


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        model_path: the graph, `<folder>/onnx/model.onnx`; its weights lie beside it.
        num_operators: number of `NMTopK` nodes.
        num_modules: number of linears whose input they prune.
        dense_difference: largest difference between the dense graph's and the dense torch model's logits, as a share of
            the largest logit.
        size_bytes: size of graph and weights.
        exporter: what wrote the dense graph, "builder" or "generic".
        quantization: what quantization did to the weights; None if they are float32.
    """

    model_path: Path
    num_operators: int
    num_modules: int
    dense_difference: float
    size_bytes: int
    exporter: str
    quantization: QuantizationReport | None = None


def export_onnx(
    model: "NMSparseForCausalLM",
    folder: str | Path,
    *,
    tokenizer_dir: str | Path,
    opset: int | None = None,
    precision: str = "fp32",
    block_size: int = 32,
    symmetric: bool = True,
    kernel: str = "auto",
    exporter: str = "auto",
    metadata: Mapping[str, str] | None = None,
) -> ExportResult:
    """Export a sparse model to `folder`/onnx, replacing what an earlier export left there.

    The folder appears whole or not at all: model.onnx with the function bodies of its operators, model.onnx.data,
    genai_config.json and the tokenizer's files.

    Args:
        model: sparse causal language model on the CPU.
        folder: existing folder of the published model.
        tokenizer_dir: folder that AutoTokenizer loads.
        opset: version of the standard operators; None and 22 are accepted.
        precision: of the linears' weights, "fp32", "int8" or "int4". The weights that are quantized are those of the
            model, output scales included; the embedding stays float32, as the builder of onnxruntime-genai has it.
        block_size: weights of neighbouring inputs that share a scale.
        symmetric: whether quantized weights have no zero points.
        kernel: what multiplies pruned inputs, "auto", "fused" or "topk"; see `insert_operators`.
        exporter: what writes the dense graph, "auto", "builder" or "generic"; see `choose_graph`. Only graphs of the
            first come with genai_config.json and tokenizer.
        metadata: entries for the graph's metadata, such as the recipe's hash. The versions of the packages that took
            part are added.

    Raises:
        UserError: the model is not sparse, waits for a budget to be spent or holds parameters that are not finite;
            there is no such folder, or none of the tokenizer; an architecture, score, opset or precision that cannot
            be exported; a package that is missing.
        NMExportError: no exporter renders the model, or the result is not a valid ONNX file.
    """
    require_sparse(model, "export_onnx")
    refuse_open_budget(model, "export_onnx")
    refuse_neutral(model, "export_onnx")
    check_finite(model)
    folder = require_folder(folder, "export_onnx")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; save the model there first.")
    tokenizer_dir = require_folder(tokenizer_dir, "export_onnx: tokenizer_dir")
    if not tokenizer_dir.is_dir():
        raise UserError(f"tokenizer_dir {tokenizer_dir} is no folder; give one with the tokenizer's files.")
    target = folder / "onnx"
    format = weight_format(precision, block_size, symmetric)
    inputs = pruned_inputs(model)
    modules = model.nm_modules()
    refuse_phases_of_lists(model, modules, {name: module.phase for name, module in modules.items()})
    if format is not None:
        if kernel == "topk":
            raise UserError(f"onnx.kernel topk multiplies float32 weights, not {precision}: use auto.")
        for name, module in modules.items():
            check_width(name, module.out_features, format)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as scratch:
        made = Path(scratch) / "onnx"
        made.mkdir()
        graph, difference = choose_graph(
            model, tokenizer_dir, made, exporter=exporter, opset=opset, share_embedding=format is None
        )
        versions = {f"version.{name}": version for name, version in installed_versions(_RECORDED).items()}
        entries = {**versions, **(metadata or {})}
        errors = insert_operators(graph, inputs, entries, kernel=kernel, format=format)
        check_graph(graph.path)
        size = sum(path.stat().st_size for path in made.glob("model.onnx*"))
        if target.exists():
            target.replace(Path(scratch) / "previous")
        made.replace(target)
    record_verification(folder, None)  # that of an earlier graph does not hold for this one
    return ExportResult(
        target / "model.onnx",
        len(inputs),
        sum(len(pruned.linears) for pruned in inputs),
        difference,
        size,
        graph.exporter,
        None if format is None else QuantizationReport(format, errors.by_module()),
    )
