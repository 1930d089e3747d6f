"""The dense graph of a model at the precision of an export: what an exported model is compared with."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nm_export.onnx.base_graph import BaseGraph
from nm_export.onnx.exporters import build_graph
from nm_export.onnx.insert import insert_operators
from nm_export.onnx.quantize import weight_format
from nm_export.onnx.session import concatenates_cache
from nm_export.onnx.stored_weights import stored_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_dense_graph(
    model: "PreTrainedModel",
    tokenizer_dir: str | Path,
    directory: str | Path,
    *,
    precision: str = "fp32",
    block_size: int = 32,
    symmetric: bool = True,
    exporter: str = "builder",
) -> BaseGraph:
    """Write the dense graph of `model` at a precision: that of the builder of onnxruntime-genai, or its like.

    Args:
        model: causal language model on the CPU, dense or `NMSparseForCausalLM`.
        tokenizer_dir: folder that AutoTokenizer loads.
        directory: existing folder to write to; see `build_base_graph`.
        precision: of the linears' weights, "fp32", "int8" or "int4"; the last two are `MatMulNBits`.
        block_size: inputs that share a scale.
        symmetric: whether quantized weights have no zero points.
        exporter: "builder" or "generic".

    Raises:
        UserError: an architecture or precision that is not supported; onnxruntime-genai is not installed.
    """
    format = weight_format(precision, block_size, symmetric)
    graph = build_graph(model, tokenizer_dir, directory, exporter=exporter, share_embedding=format is None)
    if format is None:
        return graph
    insert_operators(graph, (), {}, format=format)
    products = {
        name: tuple(replace(product, node=f"{product.node}_Q{format.bits}") for product in parts)
        for name, parts in graph.products.items()
    }
    return replace(graph, products=products, tied=None)


def build_dense_twin(model: "PreTrainedModel", folder: str | Path, target: str | Path) -> Path:
    """Write the dense twin of an exported folder: the same weights, precision and exporter, nothing pruned.

    Args:
        model: the sparse model that the folder holds; its float weights are quantized.
        folder: exported folder with `onnx/model.onnx`, whose precision and exporter are taken.
        target: new folder; it gets what `NMSparseORTModelForCausalLM` and, where it opens `folder`, onnxruntime-genai
            open.

    Returns:
        `target`.
    """
    folder, target = Path(folder), Path(target)
    (target / "onnx").mkdir(parents=True)
    path = folder / "onnx" / "model.onnx"
    format, exporter = stored_format(path), "generic" if concatenates_cache(path) else "builder"
    if format is None:
        build_dense_graph(model, folder, target / "onnx", exporter=exporter)
    else:
        build_dense_graph(
            model,
            folder,
            target / "onnx",
            precision=format.name,
            block_size=format.block_size,
            symmetric=format.symmetric,
            exporter=exporter,
        )
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    return target
