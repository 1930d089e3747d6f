"""NMTopK against a copy of its input, the function body that runs without the library, and torch.topk."""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nm_export.benchmark.products import kept_channels
from nm_export.benchmark.rivals import open_graph, select_node, selection_constants
from nm_export.benchmark.storage import FLOAT
from nm_export.benchmark.timing import Clock, take_turns
from nm_export.onnx.extras import require
from nm_export.onnx.functions import nm_topk_function


@dataclass(frozen=True)
class Selection:
    """Seconds of one selection of a float32 `[tokens, K]`; medians.

    Attributes:
        tokens: rows of the input.
        K: its channels.
        pattern: what is kept.
        operator: NMTopK, compiled.
        body: the same in standard operators, as a runtime without the library runs it.
        topk: torch.topk of the magnitudes, which gives the numbers and indices of the kept but does not put them in
            place.
        copy: of the input; NumPy's, on one thread, or torch's, on as many as the rest, whichever is faster.
    """

    tokens: int
    K: int
    pattern: str
    operator: float
    body: float
    topk: float
    copy: float


def benchmark_selection(
    *, tokens: int = 128, K: int = 4096, pattern: str = "8:16", threads: int, repeats: int, clock: Clock = Clock.wall
) -> Selection:
    """Measure in turn; the input stays in the caches, as what a model has just computed does.

    Raises:
        UserError: the pattern does not fit K, or a package or the compiled operators are not installed.
    """
    require("onnx", "onnx")
    require("onnxruntime", "onnx")
    keep = kept_channels(pattern, K)
    x = np.random.default_rng(0).standard_normal((tokens, K), np.float32)
    groups = torch.from_numpy(x).view(-1, keep[1]).abs()
    target = np.empty_like(x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory(prefix="nm_export-bench-") as folder:
            calls = {
                "operator": _bound(_session(Path(folder, "operator.onnx"), keep, K, threads, library=True), x),
                "body": _bound(_session(Path(folder, "body.onnx"), keep, K, threads, library=False), x),
                "topk": lambda: torch.topk(groups, keep[0], sorted=False),
                "copy": lambda: np.copyto(target, x),
                "parallel_copy": lambda: torch.from_numpy(target).copy_(torch.from_numpy(x)),
            }
            seconds = take_turns(calls, repeats, clock)
    finally:
        torch.set_num_threads(before)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    copy = min(medians.pop("copy"), medians.pop("parallel_copy"))
    return Selection(tokens, K, pattern, **medians, copy=copy)


def _session(path: Path, keep: tuple[int, int], K: int, threads: int, *, library: bool) -> Any:
    from onnx import helper

    inputs = [helper.make_tensor_value_info("x", FLOAT, ["tokens", K])]
    outputs = [
        helper.make_tensor_value_info("values", FLOAT, ["tokens", K]),
        helper.make_tensor_value_info("token_shift", FLOAT, ["tokens", 1]),
    ]
    node = select_node(keep, ["values", "token_shift"])
    graph = helper.make_graph([node], "selection", inputs, outputs, selection_constants(K))
    return open_graph(graph, path, threads, functions=() if library else (nm_topk_function(),), library=library)


def _bound(session: Any, x: np.ndarray) -> Any:
    """A call that runs the session on buffers that stay."""
    import onnxruntime

    binding = session.io_binding()
    for name, value in (("x", x), ("values", np.zeros_like(x)), ("token_shift", np.zeros((len(x), 1), np.float32))):
        bind = binding.bind_ortvalue_input if name == "x" else binding.bind_ortvalue_output
        bind(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    return lambda: session.run_with_iobinding(binding)
