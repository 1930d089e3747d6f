"""A graph as torch.onnx writes it, made into one as the builder of onnxruntime-genai names and stores it.

MatMul(x, stand-in)          becomes          MatMul(x, W), called as its module is, W: K x O
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from nm_export.errors import NMExportError
from nm_export.onnx.base_graph import Product, node_path
from nm_export.onnx.traced_model import WEIGHT

_AXES = ("batch_size", "sequence_length", "past_sequence_length", "total_sequence_length")
_SMALL = 16  # numbers: constants up to this size stand in the graph, where shape inference reads them


class TracedGraph:
    """An `onnx_ir.Graph` of a `TracedModel`, which is changed in place."""

    def __init__(self, graph: Any) -> None:
        """Take `graph` and forget where in Python it comes from: that names paths of this machine."""
        self.graph = graph
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()

    def name(self) -> None:
        """Name inputs, outputs, parameters and nodes, and the axes whose size is free."""
        graph = self.graph
        parts = [f"{layer}.{part}" for layer in range(len(graph.inputs) // 2 - 1) for part in ("key", "value")]
        inputs = ["input_ids", "attention_mask", *(f"past_key_values.{part}" for part in parts)]
        outputs = ["logits", *(f"present.{part}" for part in parts)]
        for value, name in zip([*graph.inputs, *graph.outputs], [*inputs, *outputs], strict=True):
            value.name = name
        for name in list(graph.initializers):
            graph.initializers[name].name = name.removeprefix("model.")
        for index, node in enumerate(graph):
            node.name = f"/{node.op_type}_{index}"
        self._name_axes()

    def put_weights_in(self, linears: Mapping[str, nn.Linear]) -> dict[str, tuple[Product, ...]]:
        """Replace every stand-in by the weight that it stands for; return the products of linears, by module.

        A weight that several products read is put in, but its module is not among those that are returned.

        Raises:
            NMExportError: a linear was not translated to MatMul.
        """
        import onnx_ir

        products: dict[str, tuple[Product, ...]] = {}
        for module, linear in linears.items():
            stand_in = self.graph.initializers.get(f"{module}.{WEIGHT}")
            if stand_in is None:
                continue  # no token ever reaches it
            path = node_path(module)
            stand_in.name = f"{path[1:].replace('/', '.')}.MatMul.weight"
            shape = onnx_ir.Shape((linear.in_features, linear.out_features))
            stand_in.const_value = onnx_ir.LazyTensor(
                _transposed(linear), onnx_ir.DataType.FLOAT, shape, name=stand_in.name
            )
            readers = [use.node for use in stand_in.uses()]
            for index, reader in enumerate(readers):
                if reader.op_type != "MatMul" or reader.inputs[1] is not stand_in:
                    raise NMExportError(
                        f"The exporter of transformers computes {module} by {reader.op_type}, not MatMul."
                    )
                reader.name = f"{path}/MatMul" if index == 0 else f"{path}/MatMul_{index}"
                if not reader.outputs[0].is_graph_output():
                    reader.outputs[0].name = f"{reader.name}/output_0"
            if len(readers) == 1:
                products[module] = (Product(f"{path}/MatMul", 0, linear.out_features),)
        return products

    def tie(
        self, head: str, embedding: str, products: Mapping[str, tuple[Product, ...]], *, share: bool
    ) -> tuple[str, str] | None:
        """Name the node that looks tokens up in a tied embedding; return the two modules if the graph has both so.

        Args:
            head: name of the output layer.
            embedding: name of the embedding.
            products: what `put_weights_in` returned.
            share: whether the lookup reads the transposed weight of the output layer, as the builder of
                onnxruntime-genai has it, rather than a table of its own.
        """
        import onnx_ir

        # torch.export calls what two modules share by the name that it meets first
        names = (f"{module}.weight" for module in (embedding, head))
        table: Any = next((self.graph.initializers[name] for name in names if name in self.graph.initializers), None)
        readers = [use.node for use in table.uses()] if table is not None else []
        if [reader.op_type for reader in readers] != ["Gather"] or head not in products:
            return None
        gather, path = readers[0], node_path(embedding)
        gather.name = f"{path}/Gather"
        if share:
            matmul = next(node for node in self.graph if node.name == products[head][0].node)
            transpose = onnx_ir.node("Transpose", [matmul.inputs[1]], {"perm": [1, 0]}, name=f"{path}/Transpose")
            rows = transpose.outputs[0]
            rows.name, rows.type, rows.shape = f"{path}/Transpose/output_0", table.type, table.shape
            self.graph.insert_before(gather, transpose)
            gather.replace_input_with(0, rows)
            del self.graph.initializers[table.name]
        return head, embedding

    def inline_small_constants(self) -> None:
        """Turn constants of the arithmetic (axes, shapes, ranges) into nodes; parameters stay in the data file."""
        import onnx_ir

        first = self.graph[0]
        for name, value in list(self.graph.initializers.items()):
            tensor = value.const_value
            if "." in name or tensor is None or tensor.size > _SMALL:
                continue
            constant = onnx_ir.node("Constant", [], {"value": onnx_ir.Tensor(tensor.numpy())}, name=f"/Constant/{name}")
            output = constant.outputs[0]
            del self.graph.initializers[name]
            output.name, output.type, output.shape = name, value.type, value.shape
            onnx_ir.convenience.replace_all_uses_with(value, output)
            self.graph.insert_before(first, constant)

    def _name_axes(self) -> None:
        """Give the axes whose size is free the names that the builder of onnxruntime-genai gives them."""
        import onnx_ir

        ids, mask, past, *_ = self.graph.inputs
        axes = (ids.shape[0], ids.shape[1], past.shape[2], mask.shape[1])
        names = {axis.value: name for axis, name in zip(axes, _AXES, strict=True)}
        values = [*self.graph.inputs, *(value for node in self.graph.all_nodes() for value in node.outputs)]
        for value in values:
            for axis, size in enumerate(value.shape or ()):
                if not isinstance(size, int) and size.value is not None:
                    renamed = re.sub(r"\w+", lambda match: names.get(match[0], match[0]), str(size.value))
                    value.shape[axis] = onnx_ir.SymbolicDim(renamed)
        for value in self.graph.outputs[1:]:
            value.shape[2] = onnx_ir.SymbolicDim(_AXES[3])


def _transposed(linear: nn.Linear) -> Any:
    import onnx_ir

    return lambda: onnx_ir.Tensor(linear.weight.detach().t().float().contiguous().numpy())
