"""What the library costs by itself: a call of an operator with next to nothing to do, and loading it."""

import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nm_export import ops
from nm_export.benchmark.rivals import constant, open_graph, select_node, selection_constants
from nm_export.benchmark.storage import FLOAT
from nm_export.benchmark.timing import Clock, take_turns
from nm_export.errors import NMExportError
from nm_export.onnx.extras import require
from nm_export.onnx.functions import DOMAIN
from nm_export.onnx.sparse_matmul_function import NM_SPARSE_MATMUL

_SIZE = 16  # channels in and out: 256 multiplications, some 20 ns
_FEW, _MANY = 100, 1100
_LOAD = """
import sys, time, onnxruntime
options = onnxruntime.SessionOptions()
start = time.perf_counter()
options.register_custom_ops_library(sys.argv[1])
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Overhead:
    """Seconds.

    Attributes:
        sparse_product: one call of NMSparseMatMul on one token and a weight of 16 x 16.
        selection: one call of NMTopK on one token of 16 channels.
        dense_product: one call of ONNX Runtime's MatMul of the same size: what any operator costs there.
        loading: first registration of the library in a process that has loaded ONNX Runtime.
    """

    sparse_product: float
    selection: float
    dense_product: float
    loading: float


def benchmark_overhead(*, repeats: int, clock: Clock = Clock.wall) -> Overhead:
    """Measure calls by what 1,000 further nodes add to the time of a graph, on one thread; loading in new processes.

    Raises:
        UserError: a package or the compiled operators are not installed.
        NMExportError: a new Python process cannot load the library.
    """
    require("onnx", "onnx")
    require("onnxruntime", "onnx")
    with tempfile.TemporaryDirectory(prefix="nm_export-bench-") as folder:
        calls = {}
        for name in ("MatMul", NM_SPARSE_MATMUL, "NMTopK"):
            for count in (_FEW, _MANY):
                session = _chain(name, count, Path(folder, f"{name}{count}.onnx"))
                calls[f"{name}{count}"] = _call(session)
        seconds = {name: statistics.median(times) for name, times in take_turns(calls, repeats, clock).items()}

    def per_call(name: str) -> float:
        return (seconds[f"{name}{_MANY}"] - seconds[f"{name}{_FEW}"]) / (_MANY - _FEW)

    return Overhead(
        sparse_product=per_call(NM_SPARSE_MATMUL),
        selection=per_call("NMTopK"),
        dense_product=per_call("MatMul"),
        loading=statistics.median(_loading() for _ in range(min(repeats, 7))),
    )


def _chain(name: str, count: int, path: Path) -> Any:
    """A session of `count` nodes, each of which reads what the one before gave."""
    from onnx import helper

    weight, zeros = constant("weight", np.eye(_SIZE)), constant("zeros", np.zeros(_SIZE))
    constants = {"MatMul": [weight], NM_SPARSE_MATMUL: [weight, zeros]}.get(name, selection_constants(_SIZE))
    inputs = [helper.make_tensor_value_info("x0", FLOAT, [1, _SIZE])]
    inputs.append(helper.make_tensor_value_info("token_shift", FLOAT, [1, 1]))
    nodes = []
    for i in range(count):
        x, y = f"x{i}", f"x{i + 1}"
        if name == "MatMul":
            nodes.append(helper.make_node(name, [x, "weight"], [y]))
        elif name == NM_SPARSE_MATMUL:
            operands = [x, "weight", "zeros", "token_shift", "zeros"]
            nodes.append(helper.make_node(name, operands, [y], domain=DOMAIN))
        else:
            nodes.append(select_node((8, 16), [y, f"e{i}"], x))
    outputs = [helper.make_tensor_value_info(f"x{count}", FLOAT, [1, _SIZE])]
    return open_graph(helper.make_graph(nodes, "chain", inputs, outputs, constants), path, threads=1)


def _call(session: Any) -> Any:
    feeds = {"x0": np.ones((1, _SIZE), np.float32), "token_shift": np.zeros((1, 1), np.float32)}
    return lambda: session.run(None, feeds)


def _loading() -> float:
    command = [sys.executable, "-c", _LOAD, str(ops.ops_library_path())]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise NMExportError(f"A new Python process cannot load {ops.ops_library_path()}: {reason}")
    return float(finished.stdout)
