"""The compiled selection for PyTorch on the CPU: the custom operators ``nm_export::nm_topk`` and ``::keep_mask``.

They follow docs/semantics.md, as the functions of the same names in ``modeling/modeling_nm_sparse.py`` do, through the
C interface of the operator library. ``register()`` makes them known to PyTorch; whoever wants them looks them up as
``getattr(torch.ops.nm_export, "nm_topk", None)`` and computes with plain PyTorch where they are missing. They have no
derivatives. ``NM_EXPORT_TORCH_KERNELS=0`` keeps them out.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from nm_export.errors import UserError
from nm_export.ops import load_library

_SWITCH = "NM_EXPORT_TORCH_KERNELS"
_C_API_VERSION = 1
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_FAILURES = {
    1: "the library refuses the arguments",
    2: "out of memory",
    3: "NM_EXPORT_ISA names an instruction set that cannot be used here",
}
# Some 50 µs of work: less is not worth the 20 µs that handing it to another thread costs.
_ELEMENTS_PER_THREAD = 1 << 17


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
    schema.impl("nm_topk", _nm_topk, "CPU")
    schema.impl("keep_mask", _keep_mask, "CPU")
    torch.library.register_fake("nm_export::nm_topk", _nm_topk_outputs, lib=schema)
    torch.library.register_fake("nm_export::keep_mask", _keep_mask_output, lib=schema)
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
    threads = min(torch.get_num_threads(), rows, rows * channels // _ELEMENTS_PER_THREAD)
    if threads <= 1:
        statuses = [run(0, rows)]
    else:
        share = -(-rows // threads)
        others = [_pool().submit(run, first, min(share, rows - first)) for first in range(share, rows, share)]
        statuses = [run(0, share), *(other.result() for other in others)]
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
