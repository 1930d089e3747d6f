"""The compiled operator against the specification, over everything that a token can hold."""

import numpy as np
import pytest
from hypothesis import given, settings

from tests.kernels import reference
from tests.kernels.cases import assert_follows_specification, cases
from tests.kernels.sessions import (
    DTYPES,
    INSTRUCTION_SETS,
    assert_identical,
    create_session,
    examples,
    instruction_set,
    nm_topk_model,
    run,
    supported_instruction_sets,
)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@settings(max_examples=examples(400), deadline=None)
@given(case=cases())
def test_follows_the_specification(isa, case):
    if isa not in supported_instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    x, score, shift, attributes = case
    dtype = next(name for name, (numpy_type, _) in DTYPES.items() if x.dtype == numpy_type)
    with instruction_set(isa):
        session = create_session(nm_topk_model(dtype, **attributes))
    assert_follows_specification(run(session, x, score, shift), x, score, shift, attributes)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("m", range(1, 65))
def test_every_pattern(isa, m):
    if isa not in supported_instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    rng = np.random.default_rng(m)
    K = 19 * m
    x = rng.integers(-m, m + 1, (2, K)).astype(np.float32)
    score, shift = np.ones(K, np.float32), np.zeros(K, np.float32)
    with instruction_set(isa):
        for n in range(1, m + 1):
            session = create_session(nm_topk_model(n=n, m=m))
            values, _ = run(session, x, score, shift)
            assert_identical(values, reference.nm_topk(x, score, shift, n=n, m=m)[0])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("m", [65, 100, 576])
def test_unstructured_patterns(isa, m):
    """One group of all channels, at every number of kept ones, with ties at nearly every boundary."""
    if isa not in supported_instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    rng = np.random.default_rng(m)
    x = rng.integers(-30, 31, (1, m)).astype(np.float32)
    x[0, rng.integers(0, m, 3)] = [np.nan, np.inf, -0.0]
    score, shift = np.ones(m, np.float32), np.zeros(m, np.float32)
    with instruction_set(isa):
        for n in range(1, m + 1, 1 if m <= 100 else 23):
            values, _ = run(create_session(nm_topk_model(n=n, m=m)), x, score, shift)
            assert_identical(values, reference.nm_topk(x, score, shift, n=n, m=m)[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_converts_every_number_of_sixteen_bits(isa, dtype):
    """Unpruned, every 16-bit pattern must come back as it was; shifted, rounded to the nearest, ties to even."""
    if isa not in supported_instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    x = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype][0]).reshape(1, -1)
    K = x.shape[-1]
    score = np.ones(K, np.float32)
    with instruction_set(isa):
        session = create_session(nm_topk_model(dtype, n=4, m=4))
    assert_identical(run(session, x, score, np.zeros(K, np.float32))[0], x)
    shift = np.random.default_rng(0).standard_normal(K).astype(np.float32)
    expected, _ = reference.nm_topk(x, score, shift, n=4, m=4)
    assert_identical(run(session, x, score, shift)[0], expected)
