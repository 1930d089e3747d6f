"""Time of NMTopK + NMSparseMatMul against ONNX Runtime's MatMul of equal float32 weights, alternating in one process.

Weights lie in a data file as an exported model has them, in as many copies as exceed the last-level cache; every run
reads all of them. Idle sessions do not spin. A ratio is the median over pairs of runs that followed each other.

    python -m tests.kernels.bench_matmul --shapes 4096x4096 576x1536 --tokens 1 4 16 128 512 --patterns 8:16
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper

from nm_export.ops import register
from tests.kernels.matmul_sessions import make_model

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ALIGNMENT = 4096


def write_weights(path: Path, K: int, O: int, copies: int, dtype: str) -> None:  # noqa: E741
    """Random weights [K, O], ``copies`` times, each at a multiple of the alignment."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((K, O), np.float32) / np.float32(np.sqrt(K))
    with path.open("wb") as file:
        for copy in range(copies):  # no two alike, which a runtime could merge
            scaled = (weight * np.float32(1 + copy / 64)).astype(DTYPES[dtype])
            file.seek(copy * padded_bytes(scaled.nbytes))
            file.write(scaled.tobytes())


def padded_bytes(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def external(name: str, data: Path, dtype: str, shape: tuple[int, int], copy: int) -> TensorProto:
    size = shape[0] * shape[1] * np.dtype(DTYPES[dtype]).itemsize
    tensor = TensorProto(name=name, data_type=TYPES[dtype], dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": data.name, "offset": copy * padded_bytes(size), "length": size}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def build(kind: str, data: Path, K: int, O: int, copies: int, dtype: str, n: int, m: int) -> ModelProto:  # noqa: E741
    """``copies`` products of one input. kind: dense, sparse (NMTopK before each) or product (of a pruned input)."""
    nodes, outputs = [], []
    initializers = [external(f"w{c}", data, dtype, (K, O), c) for c in range(copies)]
    constants = {"ones": np.ones(K), "zeros": np.zeros(K), "bias": np.zeros(O), "offset": np.zeros(O)}
    initializers += [
        helper.make_tensor(name, TensorProto.FLOAT, value.shape, value.astype(np.float32).tobytes(), raw=True)
        for name, value in constants.items()
    ]
    attributes = {"n": n, "m": m, "shift_mode": 0, "variance_correction": 0, "phase": 0, "strided": 0}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", K])]
    for c in range(copies):
        values, shift = "x", "token_shift"
        if kind == "sparse":
            values, shift = f"values{c}", f"token_shift{c}"
            nodes.append(
                helper.make_node("NMTopK", ["x", "ones", "zeros"], [values, shift], domain="ai.nm_export", **attributes)
            )
        if kind == "dense":
            nodes.append(helper.make_node("MatMul", ["x", f"w{c}"], [f"y{c}"]))
        else:
            nodes.append(
                helper.make_node(
                    "NMSparseMatMul", [values, f"w{c}", "bias", shift, "offset"], [f"y{c}"], domain="ai.nm_export"
                )
            )
        outputs.append(helper.make_tensor_value_info(f"y{c}", TensorProto.FLOAT, ["tokens", O]))
    if kind == "product":
        inputs.append(helper.make_tensor_value_info("token_shift", TensorProto.FLOAT, ["tokens", 1]))
    return make_model(helper.make_graph(nodes, kind, inputs, outputs, initializers))


def session_of(model: ModelProto, folder: Path, threads: int) -> ort.InferenceSession:
    path = folder / f"{model.graph.name}.onnx"
    path.write_bytes(model.SerializeToString())
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    register(options)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def prune(x: np.ndarray, n: int, m: int) -> np.ndarray:
    groups = x.reshape(-1, m)
    order = np.argsort(-np.abs(groups), axis=1, kind="stable")
    pruned = groups.copy()
    np.put_along_axis(pruned, order[:, n:], 0, axis=1)
    return pruned.reshape(x.shape)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(session: ort.InferenceSession, feeds: dict[str, np.ndarray], clock: Callable[[], float]) -> float:
    start = clock()
    session.run(None, feeds)
    return clock() - start


def main() -> None:
    """Print one line for each shape, pattern and number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "4096x14336", "14336x4096"], metavar="KxO")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 16, 128, 512])
    parser.add_argument("--patterns", nargs="+", default=["8:16"])
    parser.add_argument("--dtype", choices=list(TYPES), default="float32", help="of the sparse product's weights")
    parser.add_argument("--kind", choices=["sparse", "product"], default="sparse", help="with NMTopK or without")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--memory", type=float, default=2.0, help="GB of float32 weights to cycle through")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for one thread on a busy machine")
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    print(f"{'shape':>12} {'pattern':>7} {'tokens':>6} {'dense ms':>9} {'sparse ms':>9} {'ratio':>6}  quartiles")
    for shape in arguments.shapes:
        K, O = (int(size) for size in shape.split("x"))  # noqa: E741
        copies = max(2, round(arguments.memory * 1e9 / (K * O * 4)))
        with tempfile.TemporaryDirectory() as folder_name:
            folder = Path(folder_name)
            write_weights(folder / "dense.data", K, O, copies, "float32")
            sparse_data = folder / "dense.data"
            if arguments.dtype != "float32":
                sparse_data = folder / "sparse.data"
                write_weights(sparse_data, K, O, copies, arguments.dtype)
            dense = session_of(
                build("dense", folder / "dense.data", K, O, copies, "float32", 1, 1), folder, arguments.threads
            )
            for pattern in arguments.patterns:
                n, m = (int(part) for part in pattern.split(":"))
                sparse = session_of(
                    build(arguments.kind, sparse_data, K, O, copies, arguments.dtype, n, m), folder, arguments.threads
                )
                for tokens in arguments.tokens:
                    x = np.random.default_rng(1).standard_normal((tokens, K), np.float32)
                    dense_feeds, sparse_feeds = {"x": x}, {"x": x}
                    if arguments.kind == "product":
                        sparse_feeds = {"x": prune(x, n, m), "token_shift": np.zeros((tokens, 1), np.float32)}
                    times = []
                    spent = 0.0
                    seconds(dense, dense_feeds, clock), seconds(sparse, sparse_feeds, clock)
                    while len(times) < arguments.repeats and (spent < 20 or len(times) < 3):
                        times.append((seconds(dense, dense_feeds, clock), seconds(sparse, sparse_feeds, clock)))
                        spent += sum(times[-1])
                    ratios = [d / s for d, s in times]
                    low, _, high = statistics.quantiles(ratios, n=4)
                    d, s = (statistics.median(column) / copies * 1e3 for column in zip(*times, strict=True))
                    print(
                        f"{shape:>12} {pattern:>7} {tokens:>6} {d:>9.3f} {s:>9.3f} {statistics.median(ratios):>6.2f}"
                        f"  {low:.2f} to {high:.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
