"""The plain C interface of the library, called as a host in another language would."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from nm_export.ops import load_library
from tests.kernels import reference
from tests.kernels.sessions import assert_identical, supported_instruction_sets

OK, INVALID_ARGUMENT, NO_INSTRUCTION_SET = 0, 1, 3
FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
POINTERS = ("x", "score", "shift", "values", "token_shift")
SIZES = ("channels", "shift_size")
INTEGERS = ("dtype", "n", "m", "shift_mode", "variance_correction", "pruned")


class Arguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_size_t) for name in SIZES),
        *((name, ctypes.c_int32) for name in INTEGERS),
    ]


def nm_topk(first: int = 0, rows: int = 0, **fields) -> int:
    defaults = {"channels": 8, "dtype": FLOAT32, "n": 2, "m": 4, "pruned": 1}
    arguments = Arguments(**defaults | {k: v.ctypes.data if k in POINTERS else v for k, v in fields.items()})
    return load_library().nm_export_nm_topk(ctypes.byref(arguments), ctypes.c_size_t(first), ctypes.c_size_t(rows))


def keep_mask(scores: np.ndarray, n: int, m: int) -> tuple[int, np.ndarray]:
    mask = np.full(scores.shape, 2, np.uint8)
    rows, channels = (ctypes.c_size_t(size) for size in scores.shape)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (scores, mask)]
    return load_library().nm_export_keep_mask(pointers[0], rows, channels, n, m, pointers[1]), mask


class ProductArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "weight", "bias", "y")),
        *((name, ctypes.c_size_t) for name in ("tokens", "channels", "columns")),
        ("dtype", ctypes.c_int32),
    ]


def sparse_matmul(part: int, parts: int, **fields) -> int:
    given = {k: v.ctypes.data if isinstance(v, np.ndarray) else v for k, v in fields.items()}
    arguments = ProductArguments(**given)
    return load_library().nm_export_sparse_matmul(
        ctypes.byref(arguments), ctypes.c_size_t(part), ctypes.c_size_t(parts)
    )


def test_the_interface_tells_its_version():
    assert load_library().nm_export_c_api_version() == 2


@pytest.mark.parametrize(("n", "m"), [(2, 4), (8, 16), (50, 120)])
def test_a_range_of_rows(n, m):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 240)).astype(np.float16)
    score = rng.uniform(0.5, 2, 240).astype(np.float32)
    values, token_shift = np.full_like(x, 7), np.full(7, 7, np.float32)
    status = nm_topk(
        first=2,
        rows=3,
        x=x,
        score=score,
        values=values,
        token_shift=token_shift,
        channels=240,
        dtype=FLOAT16,
        n=n,
        m=m,
        shift_mode=reference.DYNAMIC_MEDIAN,
    )
    assert status == OK
    expected, expected_shift = reference.nm_topk(x, score, 0 * score, n=n, m=m, shift_mode=reference.DYNAMIC_MEDIAN)
    assert_identical(values[2:5], expected[2:5])
    assert_identical(token_shift[2:5], expected_shift[2:5, 0])
    assert (values[[0, 1, 5, 6]] == 7).all(), "rows outside the range were written"
    assert (token_shift[[0, 1, 5, 6]] == 7).all(), "rows outside the range were written"


@pytest.mark.parametrize("shift_size", [0, 1, 8])
@pytest.mark.parametrize("pruned", [0, 1])
def test_what_may_be_left_out(shift_size, pruned):
    x = np.arange(16, dtype=np.float32).reshape(2, 8) - 6
    shift = np.array([0.5, 9, -9, 0, 1, 2, 3, 4], np.float32)
    values = np.empty_like(x)
    given = {"shift": shift, "shift_size": shift_size} if shift_size else {}
    assert nm_topk(rows=2, x=x, values=values, pruned=pruned, **given) == OK
    full = np.resize(shift[:shift_size], 8) if shift_size else np.zeros(8, np.float32)
    n = 2 if pruned else 4
    assert_identical(values, reference.nm_topk(x, np.ones(8, np.float32), full, n=n, m=4)[0])


@pytest.mark.parametrize(("n", "m"), [(1, 4), (3, 7), (4, 4), (30, 64), (1, 84), (80, 168)])
def test_keep_mask_with_ties(n, m):
    scores = np.random.default_rng(m).choice(np.array([0, 1, np.inf, np.nan], np.float32), (3, m * (336 // m)))
    status, mask = keep_mask(scores, n, m)
    assert status == OK
    assert mask.tolist() == [reference.keep_mask(row, n, m).tolist() for row in scores]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0},
        {"n": 5},
        {"m": 0, "n": 0},
        {"m": -4},
        {"channels": 0},
        {"channels": 10},
        {"dtype": 3},
        {"dtype": -1},
        {"shift_mode": 3},
        {"shift_mode": -1},
        {"shift": np.zeros(8, np.float32), "shift_size": 2},
    ],
)
def test_bad_arguments_are_refused_before_anything_is_read(fields):
    assert nm_topk(rows=1, **fields) == INVALID_ARGUMENT


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (2, 3), (-1, -1)])
def test_a_bad_pattern_gives_no_mask(n, m):
    status, mask = keep_mask(np.zeros((2, 8), np.float32), n, m)
    assert status == INVALID_ARGUMENT
    assert (mask == 2).all()


CHOICES = """
import hashlib, numpy as np
from tests.kernels.test_c_api import keep_mask
digest = hashlib.sha256()
for n, m in ((1, 2), (2, 4), (3, 7), (8, 16), (16, 32), (20, 64), (300, 1000)):
    status, mask = keep_mask(np.random.default_rng(m).integers(0, 9, (5, 21 * m)).astype(np.float32), n, m)
    digest.update(mask.tobytes())
print(status, digest.hexdigest())
"""


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "channels", "columns"), [(1, 5000, 700), (3, 65, 4100), (9, 64, 64), (130, 70, 333)]
)
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_the_parts_of_a_product(dtype, tokens, channels, columns, parts):
    rng = np.random.default_rng(0)
    values = (rng.integers(-3, 4, (tokens, channels)) * rng.integers(0, 2, (tokens, channels))).astype(np.float32)
    weight = rng.integers(-3, 4, (channels, columns)).astype(dtype)
    bias = rng.integers(-3, 4, columns).astype(np.float32)
    expected = values.astype(np.float64) @ weight.astype(np.float64)
    code = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}[np.dtype(dtype).name]
    fields = {"values": values, "weight": weight, "dtype": code}
    fields |= {"tokens": tokens, "channels": channels, "columns": columns}
    written = np.zeros((tokens, columns), int)
    y = np.empty((tokens, columns), np.float32)
    for part in range(parts):
        one = np.full_like(y, np.nan)
        assert sparse_matmul(part, parts, y=one, **fields) == OK
        written += ~np.isnan(one)
        assert sparse_matmul(part, parts, y=y, bias=bias, **fields) == OK
        assert np.array_equal(one[~np.isnan(one)], expected[~np.isnan(one)])
    assert (written == 1).all()
    assert np.array_equal(y, expected + bias)


@pytest.mark.parametrize(
    ("part", "parts", "fields"),
    [(0, 0, {}), (2, 2, {}), (0, 1, {"channels": 0}), (0, 1, {"channels": 1 << 32}), (0, 1, {"dtype": 3})],
)
def test_a_product_that_is_refused_writes_nothing(part, parts, fields):
    y = np.full((1, 4), 7, np.float32)
    sizes = {"tokens": 1, "channels": 4, "columns": 4, "dtype": FLOAT32}
    operands = {"values": np.ones((1, 4), np.float32), "weight": np.ones((4, 4), np.float32), "y": y}
    assert sparse_matmul(part, parts, **operands | sizes | fields) == INVALID_ARGUMENT
    assert (y == 7).all()


@pytest.mark.parametrize("empty", ["tokens", "columns"])
def test_an_empty_product(empty):
    assert sparse_matmul(0, 1, **{"tokens": 1, "channels": 4, "columns": 4, "dtype": FLOAT32} | {empty: 0}) == OK


def run_with(isa: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", CHOICES],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "NM_EXPORT_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def test_every_instruction_set_chooses_the_same():
    outputs = {run_with(isa) for isa in supported_instruction_sets()}
    assert len(outputs) == 1
    assert outputs.pop().startswith(f"{OK} ")


def test_an_instruction_set_that_cannot_be_used_is_reported():
    assert run_with("sse9").startswith(f"{NO_INSTRUCTION_SET} ")
