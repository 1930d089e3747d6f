"""Time of ``nm_export::sparse_linear`` against PyTorch's F.linear of the same weights, alternating in one process.

Inputs are pruned already. Copies of the weights exceed the last-level cache; every run reads all of them. With
--model, tokens per second of a synthetic decoder of two layers: dense, sparse, and sparse after ``prepare``.

    python -m tests.torch_ops.bench_sparse_linear --shapes 4096x4096 576x1536 --tokens 1 8 32 128 --dtype float32
    python -m tests.torch_ops.bench_sparse_linear --model 4096x14336
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from nm_export import torch_ops
from nm_export.modeling import NMSparseForCausalLM
from nm_export.plan import make_plan
from nm_export.recipe import Recipe

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def medians(calls: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of each call, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if repeat:  # the first one warms up
                times[name].append((clock() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def pruned(x: Tensor, n: int, m: int) -> Tensor:
    return torch.where(torch.ops.nm_export.keep_mask(x.abs(), n, m), x, 0.0)


def bench_products(arguments: argparse.Namespace) -> None:
    n, m = (int(part) for part in arguments.pattern.split(":"))
    dtype = getattr(torch, arguments.dtype)
    print(f"{'shape':>12} {'tokens':>6} {'linear ms':>9} {'sparse ms':>9} {'ratio':>6}")
    for shape in arguments.shapes:
        K, O = (int(size) for size in shape.split("x"))  # noqa: E741
        copies = max(2, round(arguments.memory * 1e9 / (K * O * dtype.itemsize)))
        weights = [torch.randn(O, K).to(dtype) for _ in range(copies)]
        stored = [weight.t().contiguous().t() for weight in weights]
        for tokens in arguments.tokens:
            x = pruned(torch.randn(tokens, K), n, m).to(dtype)
            used = copies if tokens <= 32 else 2

            def run(product: Callable, matrices: list[Tensor], x: Tensor = x, used: int = used) -> None:
                for matrix in matrices[:used]:
                    product(x, matrix, None)

            calls = {
                "linear": lambda run=run, w=weights: run(F.linear, w),
                "sparse": lambda run=run, w=stored: run(torch.ops.nm_export.sparse_linear, w),
            }
            times = medians(calls, arguments.repeats, CLOCKS[arguments.clock])
            linear, sparse = times["linear"] / used, times["sparse"] / used
            print(f"{shape:>12} {tokens:>6} {linear:>9.3f} {sparse:>9.3f} {linear / sparse:>6.2f}", flush=True)


def bench_model(arguments: argparse.Namespace) -> None:
    hidden, intermediate = (int(size) for size in arguments.model.split("x"))
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=2,
        num_attention_heads=hidden // 64,
        vocab_size=2048,
        dtype=arguments.dtype,
    )
    dense = LlamaForCausalLM._from_config(config, dtype=getattr(torch, arguments.dtype)).eval()
    recipe = Recipe(model={"source": "in-memory"}, sparsity={"pattern": arguments.pattern})
    sparse = NMSparseForCausalLM.from_dense(dense, make_plan(dense, recipe).sparsity())
    prepared = copy.deepcopy(sparse)
    start = time.perf_counter()
    count = torch_ops.prepare(prepared)
    print(f"{count} weights stored by input channels in {time.perf_counter() - start:.1f} s")
    ids, new = torch.arange(100, 116)[None], 16

    def generate(model: NMSparseForCausalLM) -> None:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new,
            max_new_tokens=new,
            pad_token_id=0,
        )

    def generate_densely() -> None:
        with sparse.dense():
            generate(sparse)

    calls = {"dense": generate_densely, "sparse": lambda: generate(sparse), "prepared": lambda: generate(prepared)}
    for name, milliseconds in medians(calls, arguments.repeats, CLOCKS[arguments.clock]).items():
        print(f"{name:>9}: {milliseconds / new:.1f} ms a token")


def main() -> None:
    """Print one line for each shape and number of tokens, or three for a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["576x1536", "1536x576", "4096x4096"], metavar="KxO")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 128, 512])
    parser.add_argument("--model", metavar="HIDDENxINTERMEDIATE")
    parser.add_argument("--pattern", default="8:16")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", type=float, default=0.6, help="GB of weights to cycle through")
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu", help="cpu: for one thread on a busy machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not torch_ops.register():
        raise SystemExit("The operator library cannot be used.")
    with torch.inference_mode():
        (bench_model if arguments.model else bench_products)(arguments)


if __name__ == "__main__":
    main()
