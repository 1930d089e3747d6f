"""Turn a dense graph into one that prunes: the rules of `rewrite/`, applied to every pruned input.

    x ── MatMul(W) ── Add(b)     becomes     x ── NMTopK ── NMSparseMatMul(W * scale, b + bias) ── Add(residual)

Linears that read the same input and score it alike share one `NMTopK`. Constants are appended to the data file; float32
weights are touched only where a scale is folded into them. Quantized ones take their place, one weight at a time:

    x ── MatMul(W)               becomes     x ── NMTopK ── NMSparseMatMulNBits, or MatMulNBits if x is not pruned
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from nm_export.errors import NMExportError
from nm_export.onnx.base_graph import BaseGraph, Product, node_path
from nm_export.onnx.functions import DOMAIN, DOMAIN_VERSION, NM_TOPK, nm_topk_function
from nm_export.onnx.kernel_choice import fused_product_pays
from nm_export.onnx.matmul_nbits import RUNTIME_DOMAIN, quantize_matmul_nbits
from nm_export.onnx.pruned_inputs import PrunedInput
from nm_export.onnx.quantize import WeightFormat
from nm_export.onnx.rewrite.dense_product import dense_product
from nm_export.onnx.rewrite.editor import GraphEditor
from nm_export.onnx.rewrite.fold_scale import fold_scale
from nm_export.onnx.rewrite.matmul_nbits import matmul_nbits
from nm_export.onnx.rewrite.quantized_product import quantized_product
from nm_export.onnx.rewrite.residual import add_dropped, add_residual, project_dropped
from nm_export.onnx.rewrite.select_input import select_input
from nm_export.onnx.rewrite.shared_embedding import shared_embedding
from nm_export.onnx.rewrite.sparse_product import sparse_product
from nm_export.onnx.session import data_path
from nm_export.onnx.sparse_matmul_function import NM_SPARSE_MATMUL, nm_sparse_matmul_function
from nm_export.onnx.sparse_matmul_nbits_function import NM_SPARSE_MATMUL_NBITS, nm_sparse_matmul_nbits_function
from nm_export.onnx.weight_error import WeightErrors
from nm_export.progress import track

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

MODULES_KEY = "nm_export.modules"
"""Metadata of an `NMTopK` node: JSON, module name -> names of the values that hold its output, in the order of rows."""
ROWS_KEY = "nm_export.rows"
"""Metadata of a node with a quantized weight: JSON, the module's name, its first row there, and the one behind."""
FORMAT_KEY = "nm_export.weights"
"""Metadata of a quantized graph: JSON, the fields of its `WeightFormat`."""


def insert_operators(
    graph: BaseGraph,
    inputs: Sequence[PrunedInput],
    metadata: Mapping[str, str],
    *,
    kernel: str = "auto",
    format: WeightFormat | None = None,
) -> WeightErrors:
    """Rewrite `graph.path` in place so that the products of `inputs` read pruned values; append constants to its data.

    Args:
        graph: a dense graph.
        inputs: what to prune; see `pruned_inputs`. Without any, the graph stays one of standard operators.
        metadata: entries for the model's `metadata_props`.
        kernel: "fused" for `NMSparseMatMul`, "topk" for MatMul on the pruned values; "auto" for the first where
            `fused_product_pays`.
        format: of the linears' weights, those whose input is not pruned included; None leaves them float32. Quantized
            products with pruned inputs are fused in any phase.

    Returns:
        What quantization did to each weight.

    Raises:
        UserError: a weight that the format cannot hold.
        NMExportError: the graph has no product for a module, or products of one input read different values.
    """
    import onnx

    model = onnx.load(graph.path, load_external_data=False)
    errors = WeightErrors()
    with GraphEditor(model.graph, data_path(graph.path)) as editor:
        pruned_modules: set[str] = set()
        for pruned in track(inputs, "Inserting operators", total=len(inputs)):
            _prune(editor, graph.products, pruned, kernel, format, errors)
            pruned_modules.update(linear.name for linear in pruned.linears)
        if format is not None:
            _quantize_others(editor, graph, pruned_modules, format, errors)
            editor.close_gaps()
            metadata = {**metadata, FORMAT_KEY: json.dumps(asdict(format))}
    _declare_operators(model)
    onnx.helper.set_model_props(model, {**{p.key: p.value for p in model.metadata_props}, **metadata})
    # the builder adds the commit of whatever repository it is started in, which is none of the graph's business
    model.producer_version = model.producer_version.partition("+")[0]
    onnx.save(model, graph.path)
    return errors


def _quantize_others(
    editor: GraphEditor, graph: BaseGraph, pruned: set[str], format: WeightFormat, errors: WeightErrors
) -> None:
    others = {name: parts for name, parts in graph.products.items() if name not in pruned}
    for name, parts in track(others.items(), "Quantizing weights", total=len(others)):
        for product in parts:
            matmul = editor.nodes[product.node]
            weight = editor.map_constant(matmul.input[1])
            quantized = matmul_nbits(editor, matmul, format)
            errors.add(name, weight, quantized.dequantize())
            _note_rows(matmul, name, product)
            # at 8 bits, and with zero points, the builder keeps a float32 embedding
            if graph.tied and name == graph.tied[0] and format.bits == 4 and format.symmetric:
                lookup = shared_embedding(editor, editor.nodes[f"{node_path(graph.tied[1])}/Gather"], matmul, quantized)
                _note_rows(lookup, graph.tied[1], product)


def _note_rows(node: "NodeProto", module: str, product: Product) -> None:
    entry = node.metadata_props.add()
    entry.key, entry.value = ROWS_KEY, json.dumps([module, product.start, product.stop])


def _prune(
    editor: GraphEditor,
    products: Mapping[str, tuple[Product, ...]],
    pruned: PrunedInput,
    kernel: str,
    format: WeightFormat | None,
    errors: WeightErrors,
) -> None:
    missing = [linear.name for linear in pruned.linears if linear.name not in products]
    if missing:
        raise NMExportError(f"The ONNX graph has no product for {missing[0]}: it cannot be pruned there.")
    matmuls = [editor.nodes[product.node] for linear in pruned.linears for product in products[linear.name]]
    selection = select_input(editor, matmuls, pruned)
    dropped = add_dropped(editor, selection, pruned)
    results: dict[str, list[str]] = {}
    for linear in pruned.linears:
        projected = None
        if dropped is not None and linear.residual_in is not None:
            projected = project_dropped(editor, dropped, editor.nodes[products[linear.name][0].node], linear)
        for product in products[linear.name]:
            matmul, rows = editor.nodes[product.node], linear.rows(product.start, product.stop)
            fold_scale(editor, matmul, rows.scale)
            if format is None:
                fused = kernel == "fused" or (kernel == "auto" and _fused_pays(editor, matmul, pruned))
                multiply = sparse_product if fused else dense_product
                y = multiply(editor, matmul, rows, selection)
            else:
                weight = editor.map_constant(matmul.input[1])
                y, quantized = quantized_product(editor, matmul, rows, selection, format)
                nbits = quantize_matmul_nbits(weight, format)
                errors.add(linear.name, weight, quantized.dequantize(), nbits.dequantize())
                _note_rows(matmul, linear.name, product)
            if projected is not None:
                y = add_residual(editor, projected, y, matmul, rows)
            results.setdefault(linear.name, []).append(y)
    entry = selection.node.metadata_props.add()
    entry.key, entry.value = MODULES_KEY, json.dumps(results)


def _fused_pays(editor: GraphEditor, matmul: "NodeProto", pruned: PrunedInput) -> bool:
    K, O = editor.width(matmul.input[0]), editor.width(matmul.output[0])  # noqa: E741
    return fused_product_pays(K, O, pruned.attributes["n"] / pruned.attributes["m"], pruned.attributes["phase"])


def _declare_operators(model: "ModelProto") -> None:
    """Add the bodies of the operators that the graph uses, their domain if it uses any, and that of ONNX Runtime's."""
    import onnx

    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    bodies = {
        NM_TOPK: nm_topk_function,
        NM_SPARSE_MATMUL: nm_sparse_matmul_function,
        NM_SPARSE_MATMUL_NBITS: nm_sparse_matmul_nbits_function,
    }
    model.functions.extend(body() for name, body in bodies.items() if name in used)
    if used:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    domains = {opset.domain for opset in model.opset_import}
    if RUNTIME_DOMAIN not in domains and any(node.domain == RUNTIME_DOMAIN for node in model.graph.node):
        model.opset_import.append(onnx.helper.make_opsetid(RUNTIME_DOMAIN, 1))
