"""Compiled operators for PyTorch on the CPU: ``nm_export::nm_topk``, ``::keep_mask`` and ``::sparse_linear``.

They follow docs/semantics.md, as ``modeling/modeling_nm_sparse.py`` does without them, through the C interface of the
operator library. ``register()`` makes them known to PyTorch; whoever wants them looks them up as
``getattr(torch.ops.nm_export, "nm_topk", None)`` and computes with plain PyTorch where they are missing. They have no
derivatives. ``NM_EXPORT_TORCH_KERNELS=0`` keeps them out.

``sparse_linear`` reads only the weights of channels that are kept. These lie together when a weight is stored by input
channels, as ``prepare()`` stores them.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nm_export.errors import UserError
from nm_export.ops import load_library

_SWITCH = "NM_EXPORT_TORCH_KERNELS"
_C_API_VERSION = 2
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_FAILURES = {
    1: "the library refuses the arguments",
    2: "out of memory",
    3: "NM_EXPORT_ISA names an instruction set that cannot be used here",
}
# Some 50 µs of work: less is not worth the 20 µs that handing it to another thread costs.
_ELEMENTS_PER_THREAD = 1 << 17
# The same for products of weights that are read, at the speed of memory.
_PRODUCTS_PER_THREAD = 1 << 18
# A pattern that keeps more of its channels than this saves too little for calls of many tokens.
_MOST_KEPT = 0.6


class _NMTopKArguments(ctypes.Structure):
    """``nm_export_nm_topk_arguments`` of kernels/c_api.h, field by field."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("score", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("token_shift", ctypes.c_void_p),
        ("channels", ctypes.c_size_t),
        ("shift_size", ctypes.c_size_t),
        ("dtype", ctypes.c_int32),
        ("n", ctypes.c_int32),
        ("m", ctypes.c_int32),
        ("shift_mode", ctypes.c_int32),
        ("variance_correction", ctypes.c_int32),
        ("pruned", ctypes.c_int32),
    )


class _SparseMatMulArguments(ctypes.Structure):
    """``nm_export_sparse_matmul_arguments`` of kernels/c_api.h, field by field."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("tokens", ctypes.c_size_t),
        ("channels", ctypes.c_size_t),
        ("columns", ctypes.c_size_t),
        ("dtype", ctypes.c_int32),
    )


@functools.cache
def register() -> bool:
    """Make the operators known to PyTorch, once per process.

    Returns:
        Whether they can be used. False where ``NM_EXPORT_TORCH_KERNELS`` is 0, or where the operator library is missing
        or unusable: PyTorch then computes the same without it, more slowly.
    """
    if os.environ.get(_SWITCH) == "0":
        return False
    try:
        _library()
    except UserError:
        return False
    schema = torch.library.Library("nm_export", "FRAGMENT")
    schema.define(
        "nm_topk(Tensor x, Tensor? score, Tensor? shift, int n, int m, int shift_mode, bool variance_correction, "
        "bool pruned) -> (Tensor values, Tensor token_shift)"
    )
    schema.define("keep_mask(Tensor scores, int n, int m) -> Tensor")
    schema.define("sparse_linear(Tensor values, Tensor weight, Tensor? bias) -> Tensor")
    schema.impl("nm_topk", _nm_topk, "CPU")
    schema.impl("keep_mask", _keep_mask, "CPU")
    schema.impl("sparse_linear", _sparse_linear, "CPU")
    torch.library.register_fake("nm_export::nm_topk", _nm_topk_outputs, lib=schema)
    torch.library.register_fake("nm_export::keep_mask", _keep_mask_output, lib=schema)
    torch.library.register_fake("nm_export::sparse_linear", _sparse_linear_output, lib=schema)
    _registrations.append(schema)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has the pool's object, but not its threads
    return True


_registrations: list[torch.library.Library] = []  # PyTorch forgets the operators with the object


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library()
    size, integer, pointer = ctypes.c_size_t, ctypes.c_int32, ctypes.c_void_p
    try:
        if library.nm_export_c_api_version() != _C_API_VERSION:
            raise UserError("The operator library belongs to another version of nm_export; install the package again.")
        library.nm_export_nm_topk.argtypes = (ctypes.POINTER(_NMTopKArguments), size, size)
        library.nm_export_keep_mask.argtypes = (pointer, size, size, integer, integer, pointer)
        library.nm_export_sparse_matmul.argtypes = (ctypes.POINTER(_SparseMatMulArguments), size, size)
    except AttributeError as error:
        raise UserError(f"The operator library is too old for nm_export.torch_ops: {error}") from error
    if status := library.nm_export_keep_mask(None, 0, 1, 1, 1, None):
        raise UserError(f"The operator library cannot be used: {_FAILURES.get(status, status)}.")
    return library


@functools.cache
def _pool() -> ThreadPoolExecutor:
    # threads start when there is work for them; how many get some is up to torch.get_num_threads()
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="nm_export")


def _over_rows(rows: int, channels: int, run: Callable[[int, int], int]) -> None:
    """Call ``run(first_row, row_count)`` for all rows, in several threads where it pays."""
    threads = max(1, min(torch.get_num_threads(), rows, rows * channels // _ELEMENTS_PER_THREAD))
    share = max(1, -(-rows // threads))
    _at_once(run, [(first, min(share, rows - first)) for first in range(0, max(1, rows), share)])


def _at_once(run: Callable[[int, int], int], calls: list[tuple[int, int]]) -> None:
    """Call ``run`` with each of the arguments: the first here, every other in a thread of its own."""
    others = [_pool().submit(run, *arguments) for arguments in calls[1:]]
    statuses = [run(*calls[0]), *(other.result() for other in others)]
    if status := max(statuses):
        raise RuntimeError(f"nm_export's kernel library failed: {_FAILURES.get(status, f'status {status}')}.")


def _nm_topk(
    x: Tensor,
    score: Tensor | None,
    shift: Tensor | None,
    n: int,
    m: int,
    shift_mode: int,
    variance_correction: bool,
    pruned: bool,
) -> tuple[Tensor, Tensor]:
    values, token_shift = _nm_topk_outputs(x, score, shift, n, m, shift_mode, variance_correction, pruned)
    x = x.contiguous()
    score = score.contiguous() if score is not None else None
    shift = shift.contiguous() if shift is not None else None
    channels = x.shape[-1]
    arguments = _NMTopKArguments(
        x.data_ptr(),
        None if score is None else score.data_ptr(),
        None if shift is None else shift.data_ptr(),
        values.data_ptr(),
        token_shift.data_ptr(),
        channels,
        0 if shift is None else shift.numel(),
        _DTYPES[x.dtype],
        n,
        m,
        shift_mode,
        variance_correction,
        pruned,
    )
    run = functools.partial(_library().nm_export_nm_topk, ctypes.byref(arguments))
    _over_rows(token_shift.numel(), channels, run)
    return values, token_shift


def _nm_topk_outputs(
    x: Tensor,
    score: Tensor | None,
    shift: Tensor | None,
    n: int,
    m: int,
    shift_mode: int,
    variance_correction: bool,
    pruned: bool,
) -> tuple[Tensor, Tensor]:
    """Check the arguments of ``nm_topk`` and make its outputs, whose contents are arbitrary."""
    _check_pattern(x, n, m)
    if x.dtype not in _DTYPES:
        raise ValueError(f"nm_topk: x is {x.dtype}; it must be float32, float16 or bfloat16.")
    if shift_mode not in (0, 1, 2):
        raise ValueError(f"nm_topk: shift_mode is {shift_mode}; it must be 0, 1 or 2.")
    channels = x.shape[-1]
    for name, vector, sizes in (("score", score, (channels,)), ("shift", shift, (1, channels))):
        if vector is not None and (vector.dtype != torch.float32 or vector.dim() != 1 or vector.shape[0] not in sizes):
            raise ValueError(
                f"nm_topk: {name} is {vector.dtype} {list(vector.shape)}; it must be torch.float32 [{channels}]."
            )
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device),
    )


def _keep_mask(scores: Tensor, n: int, m: int) -> Tensor:
    mask = _keep_mask_output(scores, n, m)
    scores = scores.contiguous()
    channels = scores.shape[-1]
    source, target, library = scores.data_ptr(), mask.data_ptr(), _library()

    def run(first: int, rows: int) -> int:
        skipped = first * channels
        return library.nm_export_keep_mask(source + 4 * skipped, rows, channels, n, m, target + skipped)

    _over_rows(scores.numel() // channels, channels, run)
    return mask


def _keep_mask_output(scores: Tensor, n: int, m: int) -> Tensor:
    """Check the arguments of ``keep_mask`` and make its output, whose contents are arbitrary."""
    _check_pattern(scores, n, m)
    if scores.dtype != torch.float32:
        raise ValueError(f"keep_mask: scores are {scores.dtype}; they must be torch.float32.")
    return torch.empty(scores.shape, dtype=torch.bool, device=scores.device)


def _check_pattern(x: Tensor, n: int, m: int) -> None:
    if not 1 <= n <= m:
        raise ValueError(f"{n}:{m} is no pattern; it must be 1 <= n <= m.")
    if x.dim() == 0 or x.shape[-1] == 0 or x.shape[-1] % m:
        channels = x.shape[-1] if x.dim() else 0
        raise ValueError(f"{n}:{m} sparsity needs a number of input channels that {m} divides, not {channels}.")


def prepare(model: Any) -> int:
    """Store the weights of a model's pruned linears by input channels, where generating on the CPU gets faster by it.

    In place: every weight keeps its values, shape ``[O, K]`` and place in the model, as a transposed view of
    contiguous ``[K, O]``, which PyTorch multiplies as fast as before. It takes a few nanoseconds for each weight, and
    memory for one matrix at a time; one that was mapped from a file is in memory afterwards. Saving the model
    writes the same bytes as before.

    Args:
        model: what ``nm_export.modeling`` or the published code loaded; other models are left as they are.

    Returns:
        How many weights are stored by input channels now.
    """
    if not register():
        return 0
    linears: dict[str, Any] = model.nm_modules() if hasattr(model, "nm_modules") else {}
    pruned = set(linears.values())
    # an embedding that shares a weight reads rows [K] of it
    others = {id(p) for m in model.modules() if m not in pruned for p in m.parameters(recurse=False)}
    count = 0
    for linear in linears.values():
        weight = linear.weight
        O, K = weight.shape  # noqa: E741
        saves = linear.n <= _MOST_KEPT * linear.m and linear.phase == "both"
        usable = weight.device.type == "cpu" and weight.dtype in _DTYPES and id(weight) not in others
        if saves and usable and _pays(1, K, O):
            if not weight.t().is_contiguous():
                linear.update_offset()
                weight.data = weight.data.t().contiguous().t()
                linear.keep_offset()
            count += 1
    return count


def _pays(tokens: int, channels: int, columns: int) -> bool:
    """Whether every thread that PyTorch may use gets its share: its own threads take up less work than ours."""
    threads = torch.get_num_threads()
    return threads == 1 or tokens * channels * columns >= 2 * threads * _PRODUCTS_PER_THREAD


def _sparse_linear(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _sparse_linear_output(values, weight, bias)
    columns, channels = weight.shape
    tokens = values.numel() // channels
    stored = weight.t()
    if not stored.is_contiguous() or not _pays(tokens, channels, columns):
        with torch.autocast("cpu", enabled=False):
            return F.linear(values, weight, bias)
    x = values.to(torch.float32, memory_format=torch.contiguous_format)
    b = None if bias is None else bias.to(torch.float32).contiguous()
    y = torch.empty((*values.shape[:-1], columns))
    arguments = _SparseMatMulArguments(
        x.data_ptr(),
        stored.data_ptr(),
        None if b is None else b.data_ptr(),
        y.data_ptr(),
        tokens,
        channels,
        columns,
        _DTYPES[weight.dtype],
    )
    run = functools.partial(_library().nm_export_sparse_matmul, ctypes.byref(arguments))
    parts = torch.get_num_threads()
    _at_once(run, [(part, parts) for part in range(parts)])
    return y.to(values.dtype)


def _sparse_linear_output(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Check the arguments of ``sparse_linear`` and make its output, whose contents are arbitrary."""
    if values.dtype not in _DTYPES or weight.dtype != values.dtype or (bias is not None and bias.dtype != values.dtype):
        types = ", ".join(str(t.dtype) for t in (values, weight, bias) if t is not None)
        raise ValueError(f"sparse_linear: {types} must be one type: float32, float16 or bfloat16.")
    if weight.dim() != 2 or values.dim() == 0 or values.shape[-1] != weight.shape[1] or weight.shape[1] == 0:
        raise ValueError(
            f"sparse_linear: values has shape {list(values.shape)} and weight {list(weight.shape)}; they must be "
            "[..., K] and [O, K] with K > 0."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"sparse_linear: bias has shape {list(bias.shape)}; it must be [{weight.shape[0]}].")
    return torch.empty((*values.shape[:-1], weight.shape[0]), dtype=values.dtype, device=values.device)
