"""Graphs of one operator, repeated with a weight of its own each, and sessions that run them.

Weights lie in a data file beside the graph, as in an exported model. All products read one input and write into one
buffer, so that only weights come from memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nm_export import ops
from nm_export.benchmark.storage import FLOAT, Storage, StoredTensor
from nm_export.errors import NMExportError
from nm_export.onnx.functions import DOMAIN, DOMAIN_VERSION, NM_TOPK
from nm_export.onnx.matmul_nbits import ACCURACY_LEVEL
from nm_export.onnx.sparse_matmul_function import NM_SPARSE_MATMUL
from nm_export.onnx.sparse_matmul_nbits_function import NM_SPARSE_MATMUL_NBITS

_PAGE = 4096
_OPSET, _IR_VERSION = 22, 10


@dataclass(frozen=True)
class StoredWeights:
    """A data file that holds the tensors of a weight several times, no two copies alike.

    Attributes:
        path: of the file.
        tensors: of one copy, by name.
        copies: how many there are.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    copies: int

    @classmethod
    def write(cls, path: Path, tensors: Mapping[str, StoredTensor], memory: int) -> "StoredWeights":
        """Write at least two copies, and as many as exceed `memory` bytes."""
        copies = max(2, memory // sum(tensor.nbytes for tensor in tensors.values()) + 1)
        with path.open("wb") as file:
            for tensor in tensors.values():
                for copy in range(copies):
                    # a runtime could merge equal constants
                    file.write(np.roll(tensor.content.reshape(-1), copy).tobytes())
                    file.write(bytes(-file.tell() % _PAGE))
        return cls(path, tensors, copies)

    @property
    def nbytes(self) -> int:
        """Size of one copy."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def constants(self) -> list[Any]:
        """The `onnx.TensorProto` of every copy, `<name><copy>`."""
        from onnx import TensorProto

        constants, offset = [], 0
        for name, tensor in self.tensors.items():
            for copy in range(self.copies):
                constant = TensorProto(name=f"{name}{copy}", data_type=tensor.type, dims=tensor.shape)
                constant.data_location = TensorProto.EXTERNAL
                place = {"location": self.path.name, "offset": offset, "length": tensor.nbytes}
                for key, value in place.items():
                    constant.external_data.add(key=key, value=str(value))
                constants.append(constant)
                offset += -(-tensor.nbytes // _PAGE) * _PAGE
        return constants


class Rival:
    """An open session of `copies` products `[K, O]` of one input."""

    def __init__(self, weights: StoredWeights, nodes: list[Any], O: int, constants: list[Any], threads: int) -> None:  # noqa: E741
        """Open a session.

        Args:
            weights: of the products; the graph is written beside them.
            nodes: read `x` and the weights, and give `y<copy>`.
            O: output channels.
            constants: further ones that the nodes read.
            threads: of the session.

        Raises:
            NMExportError: ONNX Runtime refuses the graph.
        """
        from onnx import helper

        self.copies, self.O = weights.copies, O
        inputs = [helper.make_tensor_value_info("x", FLOAT, ["tokens", None])]
        outputs = [helper.make_tensor_value_info(f"y{c}", FLOAT, ["tokens", O]) for c in range(self.copies)]
        graph = helper.make_graph(nodes, "products", inputs, outputs, [*weights.constants(), *constants])
        self._session = open_graph(graph, weights.path.with_suffix(".onnx"), threads)

    def bind(self, x: np.ndarray) -> Callable[[], np.ndarray]:
        """Return a call that runs all products of `x` `[tokens, K]`, and gives the last one's `[tokens, O]`."""
        import onnxruntime

        y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((len(x), self.O), np.float32))
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
        for copy in range(self.copies):
            binding.bind_ortvalue_output(f"y{copy}", y)

        def run() -> np.ndarray:
            self._session.run_with_iobinding(binding)
            return y.numpy()

        return run

    def first(self, x: np.ndarray) -> np.ndarray:
        """The product `[tokens, O]` of `x` and the first copy."""
        return np.asarray(self._session.run(["y0"], {"x": x})[0])


def dense_rival(weights: StoredWeights, form: Storage, K: int, O: int, threads: int) -> Rival:  # noqa: E741
    """ONNX Runtime's MatMul of float32 weights, or MatMulNBits at accuracy level 4 (activations of 8 bits)."""
    from onnx import helper

    nodes = []
    for c in range(weights.copies):
        if form.block_size is None:
            nodes.append(helper.make_node("MatMul", ["x", f"weight{c}"], [f"y{c}"]))
        else:
            attributes: dict[str, Any] = {
                "K": K,
                "N": O,
                "bits": form.bits,
                "block_size": form.block_size,
                "accuracy_level": ACCURACY_LEVEL,
            }
            inputs = ["x", f"weight{c}", f"scales{c}"]
            nodes.append(helper.make_node("MatMulNBits", inputs, [f"y{c}"], domain="com.microsoft", **attributes))
    return Rival(weights, nodes, O, [], threads)


def sparse_rival(
    weights: StoredWeights,
    form: Storage,
    K: int,
    O: int,  # noqa: E741
    keep: tuple[int, int],
    threads: int,
    *,
    shared: bool = False,
) -> Rival:
    """NMTopK of `keep` = (n, m), then NMSparseMatMul or NMSparseMatMulNBits, for every copy; `shared`: NMTopK once."""
    from onnx import helper

    nodes = []
    for c in range(weights.copies):
        selection = 0 if shared else c
        if selection == c:
            nodes.append(select_node(keep, [f"values{c}", f"token_shift{c}"]))
        inputs, product = [f"values{selection}", f"weight{c}"], NM_SPARSE_MATMUL
        attributes: dict[str, Any] = {}
        if form.block_size is not None:
            inputs += [f"scales{c}", f"zero_points{c}"]
            product = NM_SPARSE_MATMUL_NBITS
            attributes = {"block_size": form.block_size, "accuracy_level": ACCURACY_LEVEL}
        inputs += ["zeros_out", f"token_shift{selection}", "zeros_out"]
        nodes.append(helper.make_node(product, inputs, [f"y{c}"], domain=DOMAIN, **attributes))
    constants = [*selection_constants(K), constant("zeros_out", np.zeros(O))]
    return Rival(weights, nodes, O, constants, threads)


def select_node(keep: tuple[int, int], outputs: list[str], x: str = "x") -> Any:
    """An `NMTopK` node of the plain kind: no score, no shift, no correction."""
    from onnx import helper

    n, m = keep
    settings: dict[str, Any] = {"n": n, "m": m, "shift_mode": 0, "variance_correction": 0, "phase": 0, "strided": 0}
    return helper.make_node(NM_TOPK, [x, "ones", "zeros"], outputs, domain=DOMAIN, **settings)


def selection_constants(K: int) -> list[Any]:
    """What `select_node` reads besides its input."""
    return [constant("ones", np.ones(K)), constant("zeros", np.zeros(K))]


def constant(name: str, values: np.ndarray) -> Any:
    """A float32 `onnx.TensorProto`."""
    from onnx import numpy_helper

    return numpy_helper.from_array(values.astype(np.float32), name)


def open_graph(graph: Any, path: Path, threads: int, *, functions: tuple[Any, ...] = (), library: bool = True) -> Any:
    """Write a graph to `path` and open it.

    Args:
        graph: an `onnx.GraphProto`; its external data lie beside `path`.
        path: file to write.
        threads: of the session, which do not spin: a session that waits would take cores from the one that is timed.
        functions: bodies for operators without a kernel.
        library: whether the compiled operators are registered.

    Raises:
        UserError: there is no compiled library.
        NMExportError: ONNX Runtime refuses the graph.
    """
    import onnxruntime
    from onnx import helper

    domains = {"": _OPSET, "com.microsoft": 1, DOMAIN: DOMAIN_VERSION}
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, functions=functions)
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if library:
        ops.register(options)
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exception types differ between its versions
        raise NMExportError(f"ONNX Runtime {onnxruntime.__version__} refuses what is to be timed: {error}") from error
