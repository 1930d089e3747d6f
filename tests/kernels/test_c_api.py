"""The plain C interface of the library, called as a host in another language would."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nm_export.ops import load_library
from tests.kernels import reference
from tests.kernels.sessions import assert_identical, supported_instruction_sets

OK, INVALID_ARGUMENT, NO_INSTRUCTION_SET = 0, 1, 3
FLOAT32, FLOAT16 = 0, 1
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


def test_the_interface_tells_its_version():
    assert load_library().nm_export_c_api_version() == 1


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
