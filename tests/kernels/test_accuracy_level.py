"""NMSparseMatMulNBits at accuracy level 4: the very integers of docs/semantics.md, stated once more in NumPy."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.nbits_reference import BLOCK_SIZES, assert_rounds_values, random_inputs, unusual_products
from tests.kernels.nbits_sessions import (
    CODE_TYPES,
    SCALE_DTYPES,
    ZERO_POINTS,
    QuantizedWeight,
    feeds,
    random_weight,
    sparse_matmul_nbits_model,
)
from tests.kernels.sessions import (
    DTYPES,
    INSTRUCTION_SETS,
    assert_identical,
    create_session,
    examples,
    instruction_set,
    supported_instruction_sets,
)

FEW = [1, 2, 5, 8, 9, 16]  # tokens that every instruction set rounds; these round any number
ROUNDS_ALWAYS = ["avx512vnni"]
COLUMNS = [*range(1, 300), 512, 520, 1026]


def multiply(isa: str, weight: QuantizedWeight, values: np.ndarray, *others: np.ndarray, threads: int = 1, level=4):
    """Y, of values' dtype."""
    if isa and isa not in supported_instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    dtype = next(name for name, (numpy_type, _) in DTYPES.items() if values.dtype == numpy_type)
    model = sparse_matmul_nbits_model(weight, dtype, level=level)
    with instruction_set(isa):
        session = create_session(model.SerializeToString(), threads)
    return session.run(None, feeds(values, weight.codes.shape[1], *others))[0].astype(values.dtype)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@settings(max_examples=examples(80), deadline=None)
@given(case=unusual_products(FEW, COLUMNS), threads=st.sampled_from([1, 3]))
def test_the_integers_are_those_of_the_specification(isa, case, threads):
    weight, inputs = case
    assert_rounds_values(multiply(isa, weight, *inputs, threads=threads), weight, *inputs)


@pytest.mark.parametrize("isa", ROUNDS_ALWAYS)
@settings(max_examples=examples(80), deadline=None)
@given(case=unusual_products([6, 17, 33, 70], COLUMNS), threads=st.sampled_from([1, 3]))
def test_many_tokens_are_rounded_like_few(isa, case, threads):
    weight, inputs = case
    assert_rounds_values(multiply(isa, weight, *inputs, threads=threads), weight, *inputs)


@pytest.mark.parametrize("isa", [isa for isa in INSTRUCTION_SETS if isa not in ROUNDS_ALWAYS])
def test_many_tokens_stay_float32(isa):
    rng = np.random.default_rng(5)
    weight = random_weight(rng, "uint4", 200, 96)
    inputs = random_inputs(rng, (17,), 200, 96)
    assert_identical(multiply(isa, weight, *inputs), multiply(isa, weight, *inputs, level=0))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("code_type", CODE_TYPES)
@pytest.mark.parametrize("zero_points", ZERO_POINTS)
def test_several_tasks_and_every_block_size(isa, zero_points, code_type):
    rng = np.random.default_rng(1)
    for block_size, scale_dtype in product(BLOCK_SIZES, SCALE_DTYPES):
        weight = random_weight(rng, code_type, 300, 4200, block_size, zero_points, scale_dtype)
        for tokens in (2, 70 if isa in ROUNDS_ALWAYS else 16):
            inputs = random_inputs(rng, (tokens,), 300, 4200)
            assert_rounds_values(multiply(isa, weight, *inputs, threads=4), weight, *inputs)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_of_values_is_rounded(isa, dtype):
    rng = np.random.default_rng(7)
    weight = random_weight(rng, "uint4", 200, 96)
    inputs = random_inputs(rng, (5,), 200, 96, dtype)
    assert_rounds_values(multiply(isa, weight, *inputs), weight, *inputs)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 8, 16, 20])
def test_tasks_that_share_the_channels(isa, tokens):
    if tokens > max(FEW) and isa not in ROUNDS_ALWAYS:
        pytest.skip("stays float32")
    rng = np.random.default_rng(6)
    weight = random_weight(rng, "uint4", 2100, 96)
    inputs = random_inputs(rng, (tokens,), 2100, 96)
    y = multiply(isa, weight, *inputs, threads=4)
    assert_rounds_values(y, weight, *inputs)
    assert_identical(multiply(isa, weight, *inputs), y)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("code_type", CODE_TYPES)
def test_the_largest_sums_do_not_saturate(isa, code_type):
    """Every code and value of a group at its largest: 64 * 127 * 255."""
    high = CODE_TYPES[code_type][1]
    for code, zero_point in ((0, high), (high, 0)):
        codes, zero_points = np.full((64, 256), code), np.full((1, 256), zero_point, np.float32)
        weight = QuantizedWeight(code_type, 64, codes, np.ones((1, 256), np.float32), zero_points)
        for sign in (1, -1):
            for tokens in (1, 12):
                expected = np.full((tokens, 256), sign * 64 * 127 * (code - zero_point), np.float32)
                values = np.full((tokens, 64), sign * 127, np.float32)
                np.testing.assert_array_equal(multiply(isa, weight, values), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_dropped_rows_do_not_matter(isa):
    rng = np.random.default_rng(2)
    weight = random_weight(rng, "uint4", 192, 300)
    values = (rng.standard_normal((3, 192)) * (np.arange(192) % 2)).astype(np.float32)
    y = multiply(isa, weight, values)
    weight.codes[::2] = 3
    assert_identical(multiply(isa, weight, np.where(values == 0, np.float32(-0.0), values)), y)


def test_other_levels_stay_float32():
    rng = np.random.default_rng(3)
    weight = random_weight(rng, "uint8", 100, 96, zero_points="symmetric")
    inputs = random_inputs(rng, (2,), 100, 96)
    exact = [multiply("", weight, *inputs, level=level) for level in (0, 1, 2, 3)]
    for y in exact[1:]:
        assert_identical(y, exact[0])
    rounded = multiply("", weight, *inputs)
    assert (rounded != exact[0]).mean() > 0.9
    assert np.linalg.norm(rounded - exact[0]) < 0.02 * np.linalg.norm(exact[0])


def test_levels_beyond_four_are_refused():
    weight = random_weight(np.random.default_rng(4), "uint8", 8, 16)
    with pytest.raises(Exception, match="the attribute accuracy_level is 5; it must be from 0 to 4"):
        multiply("", weight, np.ones((1, 8), np.float32), level=5)
