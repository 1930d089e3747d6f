"""The quantized weights of an exported graph, read back from its file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nm_export.onnx.insert import FORMAT_KEY, ROWS_KEY
from nm_export.onnx.matmul_nbits import MATMUL_NBITS, MatMulNBitsWeight
from nm_export.onnx.quantize import BlockQuantized, WeightFormat, unpack
from nm_export.onnx.rewrite.shared_embedding import GATHER
from nm_export.onnx.session import data_path

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

    _Stored = tuple[TensorProto, Path]  # a constant and the file that holds its bytes


@dataclass(frozen=True)
class StoredWeight:
    """The weight of one product, or of the embedding: rows `start:stop` of a module's, all unless it is packed.

    Attributes:
        module: its name.
        start: its first row there.
        stop: the row behind its last.
        pruned: whether the product reads a pruned input.
        weight: the numbers that the codes stand for, float32 `[K, stop - start]`, with the module's output scale.
    """

    module: str
    start: int
    stop: int
    pruned: bool
    weight: np.ndarray


def stored_format(path: str | Path) -> WeightFormat | None:
    """How the weights of a graph are quantized; None if they are float32."""
    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    return WeightFormat(**json.loads(properties[FORMAT_KEY])) if FORMAT_KEY in properties else None


def stored_weights(path: str | Path) -> Iterator[StoredWeight]:
    """The quantized weights of a graph, one at a time in memory, in the order of its nodes."""
    import onnx

    path = Path(path)
    format = stored_format(path)
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        rows = next((json.loads(entry.value) for entry in node.metadata_props if entry.key == ROWS_KEY), None)
        if rows is not None and format is not None:
            if node.op_type == GATHER:  # shares the weight of the output layer
                node = next(other for other in graph.node if node.input[2] in other.input and other is not node)
            pruned = node.op_type != MATMUL_NBITS
            read = _block_quantized if pruned else _matmul_nbits
            stored = [(constants[name], data_path(path)) for name in node.input[1:] if name in constants]
            module, start, stop = rows
            yield StoredWeight(module, start, stop, pruned, read(node, stored, format))


def _block_quantized(node: "NodeProto", stored: list["_Stored"], format: WeightFormat) -> np.ndarray:
    codes, scales, zero_points, *_ = stored
    weight = unpack(_map(codes, np.uint8), tuple(codes[0].dims), format.bits)
    return BlockQuantized(weight, _numbers(scales), _numbers(zero_points), format).dequantize()


def _matmul_nbits(node: "NodeProto", stored: list["_Stored"], format: WeightFormat) -> np.ndarray:
    packed, scales, *zeros = stored
    inputs = next(attribute.i for attribute in node.attribute if attribute.name == "K")
    zero_points = _shaped(zeros[0], np.uint8) if zeros else None
    return MatMulNBitsWeight(_shaped(packed, np.uint8), _numbers(scales), zero_points, inputs, format).dequantize()


def _numbers(stored: "_Stored") -> np.ndarray:
    """Floating-point numbers of the constant's own dtype."""
    from onnx import helper

    return _shaped(stored, helper.tensor_dtype_to_np_dtype(stored[0].data_type))


def _shaped(stored: "_Stored", dtype: np.typing.DTypeLike) -> np.ndarray:
    return _map(stored, dtype).reshape(tuple(stored[0].dims))


def _map(stored: "_Stored", dtype: np.typing.DTypeLike) -> np.ndarray:
    """The bytes of a constant, flat, where they lie in the data file."""
    tensor, data = stored
    where = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
    return np.memmap(data, np.uint8, "r", where["offset"], (where["length"],)).view(dtype)
