"""Put `NMTopK` in front of every pruned product of a dense graph:

    x ── MatMul(W) ── y          becomes          x ── NMTopK ── values ── MatMul(W) ── Add(W e + b) ── y

    x ── MatMul(W) ── y          or               x ── NMTopK ── values ── NMSparseMatMul(W, W e + b) ── y

Linears that read the same input and score it alike share one `NMTopK`. A static shift becomes part of the bias; a
dynamic one is `Add(Mul(token_shift, W 1))`, or an input of `NMSparseMatMul`. Weights are neither read nor rewritten:
new constants are appended to the data file.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from nm_export.errors import NMExportError
from nm_export.modeling.modeling_nm_sparse import PHASES, SHIFT_MODES, NMSparseLinear
from nm_export.onnx.base_graph import BaseGraph, Product
from nm_export.onnx.functions import DOMAIN, DOMAIN_VERSION, NM_TOPK, nm_topk_function
from nm_export.onnx.session import data_path
from nm_export.onnx.sparse_matmul_function import NM_SPARSE_MATMUL, nm_sparse_matmul_function

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

MODULES_KEY = "nm_export.modules"
"""Metadata of an `NMTopK` node: JSON, module name -> names of the values that hold its output, in the order of rows."""

_ALIGNMENT = 64  # of appended constants: a cache line


@dataclass(frozen=True)
class PrunedInput:
    """One input that is pruned once, and the linears that read it.

    Attributes:
        modules: names of the linears, in the order of the model.
        attributes: attributes of the `NMTopK` node.
        score: float32 `[K]`, or None for ones.
        shift: float32 `[K]`, or None for zeros.
        offsets: module name -> float32 `[O]`, for the modules that have a shift.
    """

    modules: tuple[str, ...]
    attributes: Mapping[str, int]
    score: np.ndarray | None = None
    shift: np.ndarray | None = None
    offsets: Mapping[str, np.ndarray] = field(default_factory=dict)


def pruned_inputs(model: Any) -> list[PrunedInput]:
    """Read off a sparse model what is pruned together, in the order of its modules.

    Args:
        model: an `NMSparseForCausalLM`, whose config names the groups in `sparsity["input_groups"]`.

    Raises:
        NMExportError: linears of one group do not agree on how to prune their input.
    """
    modules: dict[str, NMSparseLinear] = model.nm_modules()
    group_of = {name: tuple(group) for group in model.config.sparsity["input_groups"] for name in group}
    inputs: dict[str, PrunedInput] = {}
    for name in modules:
        names = tuple(n for n in modules if n in group_of.get(name, (name,)))
        if names[0] in inputs:
            continue
        first, *others = members = [_pruned_input(n, modules[n]) for n in names]
        for other in others:
            if not _prunes_alike(first, other):
                raise NMExportError(
                    f"{other.modules[0]} shares its input with {names[0]} but prunes it in another way: "
                    "recalibrate the model, or take it out of sparsity.input_groups."
                )
        offsets = {n: offset for member in members for n, offset in member.offsets.items()}
        inputs[names[0]] = PrunedInput(names, first.attributes, first.score, first.shift, offsets)
    return list(inputs.values())


def _pruned_input(name: str, module: NMSparseLinear) -> PrunedInput:
    attributes = {
        "n": module.n,
        "m": module.m,
        "shift_mode": SHIFT_MODES[module.shift],
        "variance_correction": int(module.variance_correction),
        "phase": PHASES[module.phase],
    }
    score, shift, offset = (
        None if buffer is None else buffer.detach().cpu().float().numpy()
        for buffer in (module.nm_score, module.nm_shift, module.nm_offset)
    )
    if shift is not None:
        shift = np.broadcast_to(shift, (module.in_features,))
    return PrunedInput((name,), attributes, score, shift, {} if offset is None else {name: offset})


def _prunes_alike(a: PrunedInput, b: PrunedInput) -> bool:
    def same(left: np.ndarray | None, right: np.ndarray | None) -> bool:
        return left is right if left is None or right is None else np.array_equal(left, right)

    return a.attributes == b.attributes and same(a.score, b.score) and same(a.shift, b.shift)


def insert_operators(
    graph: BaseGraph, inputs: Iterable[PrunedInput], metadata: Mapping[str, str], *, kernel: str = "auto"
) -> None:
    """Rewrite `graph.path` in place so that the products of `inputs` read pruned values; append constants to its data.

    Args:
        graph: a dense graph.
        inputs: what to prune; see `pruned_inputs`.
        metadata: entries for the model's `metadata_props`.
        kernel: "fused" for `NMSparseMatMul`, "topk" for MatMul on the pruned values; "auto" for the first, except where
            some calls are not pruned: there a dense product is faster.

    Raises:
        NMExportError: the graph has no product for a module, or products of one input read different values.
    """
    import onnx

    model = onnx.load(graph.path, load_external_data=False)
    with data_path(graph.path).open("ab") as data:
        _Insertion(model, data, kernel).run(graph.products, inputs)
    model.functions.append(nm_topk_function())
    if any(node.op_type == NM_SPARSE_MATMUL for node in model.graph.node):
        model.functions.append(nm_sparse_matmul_function())
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    onnx.helper.set_model_props(model, {**{p.key: p.value for p in model.metadata_props}, **metadata})
    onnx.save(model, graph.path)


class _Insertion:
    """The state of one rewriting: the nodes by name, the values' types, the file that takes the constants."""

    def __init__(self, model: "ModelProto", data: Any, kernel: str) -> None:
        self.graph = model.graph
        self.data = data
        self.kernel = kernel
        self.nodes = {node.name: node for node in model.graph.node}
        self.types = {v.name: v.type for v in (*model.graph.value_info, *model.graph.output)}
        self.outputs = {v.name for v in model.graph.output}
        self.initializers = {t.name for t in model.graph.initializer}
        self.before: dict[str, list[NodeProto]] = {}  # nodes to put in front of a node, by its name
        self.after: dict[str, list[NodeProto]] = {}
        self.merged: set[str] = set()  # nodes whose work another node does now

    def run(self, products: Mapping[str, tuple[Product, ...]], inputs: Iterable[PrunedInput]) -> None:
        for pruned in inputs:
            missing = [name for name in pruned.modules if name not in products]
            if missing:
                raise NMExportError(f"The ONNX graph has no product for {missing[0]}: it cannot be pruned there.")
            self.prune({name: products[name] for name in pruned.modules}, pruned)
        ordered = []
        for node in self.graph.node:
            if node.name not in self.merged:
                ordered += [*self.before.get(node.name, ()), node, *self.after.get(node.name, ())]
        ordered = [type(node).FromString(node.SerializeToString()) for node in ordered]
        del self.graph.node[:]
        self.graph.node.extend(ordered)

    def prune(self, products: Mapping[str, tuple[Product, ...]], pruned: PrunedInput) -> None:
        from onnx import helper

        flat = [product for parts in products.values() for product in parts]
        matmuls = [self.nodes[product.node] for product in flat]
        x = matmuls[0].input[0]
        if any(matmul.input[0] != x for matmul in matmuls):
            raise NMExportError(f"{', '.join(pruned.modules)} do not read the same value in the ONNX graph.")
        name = _node_name([product.node for product in flat])
        K = self.types[x].tensor_type.shape.dim[-1].dim_value
        topk = helper.make_node(
            NM_TOPK,
            [x, self.vector(name, "score", pruned.score, 1.0, K), self.vector(name, "shift", pruned.shift, 0.0, K)],
            [f"{name}/output_0", f"{name}/output_1"],
            name=name,
            domain=DOMAIN,
            **dict[str, Any](pruned.attributes),
        )
        self.declare_like(topk.output[0], x)
        self.declare_like(topk.output[1], x, last_dim=1)
        self.before.setdefault(matmuls[0].name, []).append(topk)

        results: dict[str, list[str]] = {}
        for module, parts in products.items():
            for part in parts:
                matmul = self.nodes[part.node]
                matmul.input[0] = topk.output[0]
                offset = pruned.offsets.get(module)
                if offset is not None:
                    offset = offset[part.start : part.stop]
                dynamic = pruned.attributes["shift_mode"] > 0
                if self.kernel == "fused" or (self.kernel == "auto" and pruned.attributes["phase"] == PHASES["both"]):
                    self.make_sparse(matmul, part.stop - part.start, offset, topk.output[1], dynamic)
                elif offset is not None:
                    self.add_offset(matmul, offset, topk.output[1] if dynamic else None)
                results.setdefault(module, []).append(self.result(matmul))
        entry = topk.metadata_props.add()
        entry.key, entry.value = MODULES_KEY, json.dumps(results)

    def make_sparse(
        self, matmul: "NodeProto", outputs: int, offset: np.ndarray | None, token_shift: str, dynamic: bool
    ) -> None:
        """Turn a product, and the bias that is added to it, into one `NMSparseMatMul`."""
        path = matmul.name.removesuffix("/MatMul")[1:].replace("/", ".")
        bias = None
        add = self.bias_add(matmul)
        if add is not None:
            bias = self.take(add.input[1])
            self.merged.add(add.name)
            matmul.output[0] = add.output[0]
        if offset is not None and not dynamic:
            bias = offset if bias is None else bias + offset
        names = [
            self.vector(f"/{path}", "sparse_bias", bias, 0.0, outputs),
            token_shift,
            self.vector(f"/{path}", "offset", offset if dynamic else None, 0.0, outputs),
        ]
        matmul.op_type, matmul.domain = NM_SPARSE_MATMUL, DOMAIN
        matmul.input.extend(names)

    def take(self, name: str) -> np.ndarray:
        """The values of an initializer that nothing needs any more."""
        tensor = next(t for t in self.graph.initializer if t.name == name)
        values = self.read(tensor)
        self.graph.initializer.remove(tensor)
        return values

    def add_offset(self, matmul: "NodeProto", offset: np.ndarray, token_shift: str | None) -> None:
        """Add `offset` `[O]` to the product, times the token's shift if that is dynamic, else merged with a bias."""
        from onnx import helper

        path = matmul.name.removesuffix("/MatMul")
        constant = f"{path[1:].replace('/', '.')}.offset"
        bias = self.bias_add(matmul)
        if token_shift is None and bias is not None:
            self.add_initializer(f"{constant}_and_bias", self.take(bias.input[1]) + offset)
            bias.input[1] = f"{constant}_and_bias"
            return
        self.add_initializer(constant, offset)
        added = constant
        nodes = []
        if token_shift is not None:
            added = f"{path}/offset/Mul/output_0"
            nodes.append(helper.make_node("Mul", [token_shift, constant], [added], name=f"{path}/offset/Mul"))
            self.declare_like(added, matmul.output[0])
        product, total = matmul.output[0], f"{path}/offset/Add/output_0"
        if product in self.outputs:  # the name of a graph output stays with the last node
            product, total = f"{matmul.name}/output_0", product
            self.declare_like(product, total)
            matmul.output[0] = product
        else:
            for reader in self.graph.node:
                for i, value in enumerate(reader.input):
                    if value == product:
                        reader.input[i] = total
            self.declare_like(total, product)
        nodes.append(helper.make_node("Add", [product, added], [total], name=f"{path}/offset/Add"))
        self.nodes |= {node.name: node for node in nodes}
        self.after[matmul.name] = nodes

    def bias_add(self, matmul: "NodeProto") -> "NodeProto | None":
        return self.nodes.get(f"{matmul.name.removesuffix('/MatMul')}/Add")

    def result(self, matmul: "NodeProto") -> str:
        """Name of the value that holds the linear's output: after the offset and the bias."""
        if matmul.op_type == NM_SPARSE_MATMUL:
            return matmul.output[0]
        last = self.bias_add(matmul) or self.nodes.get(f"{matmul.name.removesuffix('/MatMul')}/offset/Add") or matmul
        return last.output[0]

    def vector(self, node: str, kind: str, values: np.ndarray | None, default: float, K: int) -> str:
        """Name of an initializer `[K]`: the node's own, or the one that all nodes share for the default."""
        shared = f"nm_export.{kind}_{default:g}_{K}"
        name = shared if values is None else f"{node[1:].replace('/', '.')}.{kind}"
        if name not in self.initializers:
            self.add_initializer(name, np.full(K, default) if values is None else values)
        return name

    def add_initializer(self, name: str, values: np.ndarray) -> None:
        from onnx import TensorProto

        tensor = TensorProto(name=name, dims=values.shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        raw = np.ascontiguousarray(values, np.float32).tobytes()
        self.data.write(bytes(-self.data.tell() % _ALIGNMENT))
        location = {"location": Path(self.data.name).name, "offset": self.data.tell(), "length": len(raw)}
        for key, value in location.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        self.data.write(raw)
        self.graph.initializer.append(tensor)
        self.initializers.add(name)

    def read(self, tensor: "TensorProto") -> np.ndarray:
        where = {entry.key: entry.value for entry in tensor.external_data}
        count = int(where["length"]) // 4
        return np.fromfile(self.data.name, np.float32, count, offset=int(where["offset"])).reshape(tensor.dims)

    def declare_like(self, name: str, like: str, last_dim: int | None = None) -> None:
        """State the type and shape of a new value: those of another one, but for the last axis."""
        from onnx import ValueInfoProto

        info = ValueInfoProto(name=name)
        info.type.CopyFrom(self.types[like])
        if last_dim is not None:
            info.type.tensor_type.shape.dim[-1].Clear()
            info.type.tensor_type.shape.dim[-1].dim_value = last_dim
        self.graph.value_info.append(info)
        self.types[name] = info.type


def _node_name(products: list[str]) -> str:
    """`/model/layers.0/mlp/down_proj/NMTopK` for one product, `/model/layers.0/mlp/NMTopK` for several."""
    parents = {PurePosixPath(name).parent for name in products}
    shared = parents.pop() if len(parents) == 1 else parents.pop().parent
    return str(shared / NM_TOPK)
