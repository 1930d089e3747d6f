"""Look into the pruned linears of an exported graph: feed each its own input, read what it keeps and what it returns.

Sparse models diverge from one backend to the next as soon as one near-tie flips, so backends are compared module by
module. A probe is the part of the graph between the inputs and the outputs of the pruned linears; the weights stay in
the exported file.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nm_export.errors import NMExportError
from nm_export.onnx.functions import DOMAIN, NM_TOPK
from nm_export.onnx.insert import MODULES_KEY
from nm_export.onnx.session import data_path, open_session

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def run_probe(
    model_path: str | Path,
    inputs: Mapping[str, np.ndarray],
    *,
    library: bool | None = None,
    session_options: Any = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Run pruned linears of a graph on inputs of one's own, each independent of the others.

    Args:
        model_path: graph that `export_onnx` wrote.
        inputs: name of a pruned linear -> its input, float32 `[tokens, K]` or `[batch, tokens, K]`. Linears that read
            the same input are pruned once, so that one array stands for all of them, whichever of them names it.
        library: see `create_session`.
        session_options: see `create_session`.

    Returns:
        For every linear of every pruned input that was fed: the kept channels, bool, shaped like the input, true where
        the pruned value is not zero; the output, float32 `[..., O]`, with all that belongs to the linear: shift, scale,
        biases, residual.

    Raises:
        NMExportError: the graph does not prune one of the linears, or the inputs of linears that share one differ.
    """
    if not inputs:
        return {}
    path = Path(model_path)
    probe = module_probe(path, inputs)
    node_of = {module: node.name for node in probe.graph.node for module in _outputs(node)}
    fed: dict[str, np.ndarray] = {}
    for module, x in inputs.items():
        known = fed.setdefault(node_of[module], x)
        if known is not x and not np.array_equal(known, x, equal_nan=True):
            raise NMExportError(f"{module} shares its input with another linear in {path}, but was given another one.")

    session = open_session(probe, data_path(path), library=library, session_options=session_options, spinning=False)
    feeds = {f"{node}/x": x.astype(np.float32, copy=False).reshape(-1, *x.shape[-2:]) for node, x in fed.items()}
    names = [output.name for output in session.get_outputs()]
    results = dict(zip(names, session.run(names, feeds), strict=True))
    answer = {}
    for module, node in node_of.items():
        leading = fed[node].shape[:-1]
        kept, y = results[f"{node}/values"] != 0, results[f"{module}/y"]
        answer[module] = (kept.reshape(*leading, -1), y.reshape(*leading, -1))
    return answer


def module_probe(model_path: str | Path, modules: Collection[str]) -> "ModelProto":
    """Cut the pruned inputs that feed `modules` out of a graph; see `run_probe`.

    Returns:
        A model without weights, whose constants still point into the graph's data file. For each `NMTopK` node: an
        input `<node>/x` `[batch, tokens, K]` and an output `<node>/values` of the same shape; for each linear that it
        feeds, an output `<module>/y` `[batch, tokens, O]`, the parts of a packed one side by side.

    Raises:
        NMExportError: the graph does not prune one of the modules.
    """
    import onnx
    from onnx import helper

    model = onnx.load(model_path, load_external_data=False)
    graph = model.graph
    types = {v.name: v.type for v in graph.value_info}
    producers = {name: node for node in graph.node for name in node.output}
    chosen = [node for node in graph.node if not _outputs(node).keys().isdisjoint(modules)]
    missing = set(modules) - {module for node in chosen for module in _outputs(node)}
    if missing:
        raise NMExportError(f"{model_path} does not prune {min(missing)}.")

    nodes: list[NodeProto] = []
    inputs, outputs = [], []
    for topk in chosen:
        parts = _outputs(topk)
        needed = _between(topk, [value for values in parts.values() for value in values], producers)
        x, fed = topk.input[0], f"{topk.name}/x"
        inputs.append(onnx.ValueInfoProto(name=fed, type=types[x]))
        outputs.append(onnx.ValueInfoProto(name=f"{topk.name}/values", type=types[x]))
        for node in needed:
            node.input[:] = [fed if value == x else value for value in node.input]
        nodes += [*needed, helper.make_node("Identity", [topk.output[0]], [f"{topk.name}/values"])]
        for module, values in parts.items():
            nodes.append(helper.make_node("Concat", values, [f"{module}/y"], axis=-1))
            outputs.append(helper.make_tensor_value_info(f"{module}/y", onnx.TensorProto.FLOAT, [None, None, None]))
    read = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    probe = helper.make_model(
        helper.make_graph(nodes, "probe", inputs, outputs, constants),
        functions=model.functions,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    return probe


def _outputs(node: "NodeProto") -> dict[str, list[str]]:
    """Module name -> names of the values that make up its output, of an `NMTopK` node; nothing for any other node."""
    if node.op_type != NM_TOPK or node.domain != DOMAIN:
        return {}
    return next((json.loads(entry.value) for entry in node.metadata_props if entry.key == MODULES_KEY), {})


def _between(topk: "NodeProto", values: list[str], producers: dict[str, "NodeProto"]) -> list["NodeProto"]:
    """The nodes from what `topk` reads to `values`, `topk` included, in an order in which they can run."""
    found: dict[str, NodeProto] = {}
    x = topk.input[0]

    def visit(value: str) -> None:
        node = producers.get(value)
        if value == x or node is None or node.name in found:
            return
        for source in node.input:
            visit(source)
        found[node.name] = node

    for value in values:
        visit(value)
    return list(found.values())
