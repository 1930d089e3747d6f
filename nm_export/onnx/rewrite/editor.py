"""Editing a graph in place whose weights lie in a file of their own."""

from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

_ALIGNMENT = 64  # of appended constants: a cache line
_PAGE = 4096  # and of those that are larger than one, in a file without gaps
_COPIED = 1 << 24  # bytes at a time


class GraphEditor:
    """A graph that is being rewritten and the file that holds its weights; leaving the context puts nodes in order.

    Attributes:
        nodes: the nodes by name, new ones included.
        types: types and shapes of the values, by name.
    """

    def __init__(self, graph: "GraphProto", data: Path) -> None:
        """Edit `graph`, whose initializers are float32 in the file `data`."""
        self.graph = graph
        self.nodes = {node.name: node for node in graph.node}
        self.types = {v.name: v.type for v in (*graph.value_info, *graph.output)}
        self._outputs = {v.name for v in graph.output}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._sequence = list(graph.node)
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            self._note_inputs(node)
        self._path = data
        self._data = data.open("ab")

    def __enter__(self) -> "GraphEditor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._data.close()
        if error is None:
            self._sort()

    def add(
        self,
        op_type: str,
        inputs: list[str],
        name: str,
        like: str,
        last_dim: int | None = None,
        dtype: int | None = None,
    ) -> str:
        """Add a node of the standard operators with one output and return the output's name.

        Args:
            op_type: the operator.
            inputs: names of values and constants.
            name: of the node.
            like: a value with the output's type and shape,
            last_dim: but for the last axis,
            dtype: and but for the type of the elements, of `TensorProto.DataType`.
        """
        from onnx import helper

        node = helper.make_node(op_type, inputs, [f"{name}/output_0"], name=name)
        self.add_node(node)
        self.declare(node.output[0], like, last_dim, dtype)
        return str(node.output[0])

    def add_node(self, node: "NodeProto") -> None:
        """Add a node; it will stand before the first that reads it. Its outputs are for the caller to declare."""
        self.nodes[node.name] = node
        self._sequence.append(node)
        self._note_inputs(node)

    def rename_node(self, node: "NodeProto", name: str) -> None:
        """Give a node another name; its values keep theirs."""
        del self.nodes[node.name]
        node.name = name
        self.nodes[name] = node

    def remove_node(self, node: "NodeProto") -> None:
        """Remove a node whose outputs another one gives now."""
        del self.nodes[node.name]
        self._sequence = [other for other in self._sequence if other is not node]

    def set_input(self, node: "NodeProto", i: int, value: str) -> None:
        """Let a node read another value."""
        node.input[i] = value
        self._readers.setdefault(value, []).append(node)

    def follow(self, value: str, op_type: str, other: str, name: str) -> str:
        """Put `op_type(value, other)`, of the value's shape, behind a value: whatever read the value reads the result.

        `other` does not depend on the value.

        Returns:
            The name of the result. An output of the graph keeps its name, and what was it gets another.
        """
        from onnx import helper

        readers = self.readers(value)
        if value in self._outputs:
            producer = next(node for node in self._sequence if value in node.output)
            inner = f"{producer.name}/output_0"
            self.declare(inner, value)
            producer.output[list(producer.output).index(value)] = inner
            self.add_node(helper.make_node(op_type, [inner, other], [value], name=name))
            return value
        result = self.add(op_type, [value, other], name, value)
        for reader in readers:
            for i, read in enumerate(reader.input):
                if read == value:
                    self.set_input(reader, i, result)
        return result

    def readers(self, value: str) -> list["NodeProto"]:
        """The nodes that read a value."""
        nodes = {node.name: node for node in self._readers.get(value, ()) if node.name in self.nodes}
        return [node for node in nodes.values() if value in node.input]

    def bias_add(self, product: "NodeProto") -> tuple["NodeProto", str] | None:
        """The node that adds a constant to a product, and the constant's name; None if there is none."""
        readers = self.readers(product.output[0])
        if len(readers) != 1 or readers[0].op_type != "Add":
            return None
        return next(((readers[0], name) for name in readers[0].input if name in self._initializers), None)

    def declare(self, name: str, like: str, last_dim: int | None = None, dtype: int | None = None) -> None:
        """State the type and shape of a new value; the arguments are those of `add`."""
        from onnx import ValueInfoProto

        info = ValueInfoProto(name=name)
        info.type.CopyFrom(self.types[like])
        if last_dim is not None:
            info.type.tensor_type.shape.dim[-1].Clear()
            info.type.tensor_type.shape.dim[-1].dim_value = last_dim
        if dtype is not None:
            info.type.tensor_type.elem_type = dtype
        self.graph.value_info.append(info)
        self.types[name] = info.type

    def width(self, value: str) -> int:
        """Size of a value's last axis."""
        return int(self.types[value].tensor_type.shape.dim[-1].dim_value)

    def add_constant(self, name: str, values: np.ndarray) -> str:
        """Append a float32 constant to the data file and return its name; one of that name is taken to be the same."""
        from onnx import TensorProto

        return self.add_tensor(name, np.asarray(values, np.float32, order="C"), TensorProto.FLOAT, values.shape)

    def add_tensor(self, name: str, stored: np.ndarray, dtype: int, shape: tuple[int, ...]) -> str:
        """As `add_constant`, for any type: `stored` holds the bytes of a tensor of that type and shape."""
        from onnx import TensorProto

        if name in self._initializers:
            return name
        self._data.write(bytes(-self._data.tell() % _ALIGNMENT))
        tensor = TensorProto(name=name, dims=shape, data_type=dtype)
        _point_to(tensor, self._path.name, self._data.tell(), stored.nbytes)
        self._data.write(stored.data)  # straight from the array: it may be a mapped file
        self._initializers[name] = tensor
        self.graph.initializer.append(tensor)
        return name

    def add_vector(self, name: str, values: np.ndarray | None, default: float, size: int) -> str:
        """As `add_constant`; None gives the vector `[size]` of defaults that everybody shares."""
        if values is not None:
            return self.add_constant(name, values)
        return self.add_constant(f"nm_export.{default:g}_{size}", np.full(size, default))

    def take_constant(self, name: str) -> np.ndarray:
        """Return a constant's values; it goes with the last node that reads it, which is about to stop doing so."""
        values = np.array(self.map_constant(name))
        if len(self.readers(name)) == 1:
            self.graph.initializer.remove(self._initializers.pop(name))
        return values

    def map_constant(self, name: str) -> np.ndarray:
        """The values of a float32 constant where they lie in the data file, to be read."""
        return self._map(self._initializers[name], "r")

    def drop_unread(self, name: str) -> None:
        """Remove a constant that no node reads any more; its bytes stay until `close_gaps`."""
        if name in self._initializers and not self.readers(name):
            self.graph.initializer.remove(self._initializers.pop(name))

    def close_gaps(self) -> None:
        """Write the data file anew with the constants that are left, in their order."""
        self._data.close()
        packed = self._path.with_name(f".{self._path.name}.packed")
        with self._path.open("rb") as old, packed.open("wb") as new:
            for tensor in self.graph.initializer:
                where = {entry.key: entry.value for entry in tensor.external_data}
                length = int(where["length"])
                new.write(bytes(-new.tell() % (_PAGE if length > _PAGE else _ALIGNMENT)))
                _point_to(tensor, self._path.name, new.tell(), length)
                old.seek(int(where["offset"]))
                _copy(old, new, length)
        packed.replace(self._path)
        self._data = self._path.open("ab")

    def scale_columns(self, node: "NodeProto", i: int, factors: np.ndarray) -> None:
        """Multiply the columns of the `[K, O]` constant that is a node's input `i` by `factors` `[O]`.

        In place in the data file, where nobody else reads the constant; a mapped file never lies in memory whole.
        """
        name = node.input[i]
        if len(self.readers(name)) > 1:
            name = self.add_constant(f"{name}.scaled", self._map(self._initializers[name], "r"))
            self.set_input(node, i, name)
        columns = self._map(self._initializers[name], "r+")
        columns *= factors
        columns.flush()

    def _map(self, tensor: "TensorProto", mode: str) -> np.memmap:
        self._data.flush()
        where = {entry.key: entry.value for entry in tensor.external_data}
        return np.memmap(self._path, np.float32, mode, int(where["offset"]), tuple(tensor.dims))  # type: ignore[call-overload]

    def _note_inputs(self, node: "NodeProto") -> None:
        for value in node.input:
            self._readers.setdefault(value, []).append(node)

    def _sort(self) -> None:
        """Write the nodes back so that each stands behind those it reads, the old ones in their old order."""
        producers = {value: node for node in self._sequence for value in node.output if value}  # "" is left out
        ordered: list[NodeProto] = []
        placed: set[int] = set()

        def place(node: "NodeProto") -> None:
            if id(node) in placed:
                return
            placed.add(id(node))
            for value in node.input:
                if value in producers:
                    place(producers[value])
            ordered.append(node)

        for node in self._sequence:
            place(node)
        copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
        del self.graph.node[:]
        self.graph.node.extend(copies)


def _point_to(tensor: "TensorProto", location: str, offset: int, length: int) -> None:
    """Say where the bytes of a tensor lie."""
    tensor.data_location = type(tensor).EXTERNAL
    del tensor.external_data[:]
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def _copy(source: IO[bytes], target: IO[bytes], length: int) -> None:
    while length:
        part = source.read(min(length, _COPIED))
        target.write(part)
        length -= len(part)
