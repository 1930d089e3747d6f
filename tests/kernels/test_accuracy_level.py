"""NMSparseMatMulNBits at accuracy level 4: the very integers of docs/semantics.md, stated once more in NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.kernels.nbits_sessions import CODE_TYPES, QuantizedWeight, feeds, random_weight, sparse_matmul_nbits_model
from tests.kernels.sessions import (
    INSTRUCTION_SETS,
    assert_identical,
    create_session,
    instruction_set,
    supported_instruction_sets,
)

FEW = [1, 2, 5, 8]  # tokens that every instruction set rounds; these round any number
ROUNDS_ALWAYS = ["avx512vnni"]
BLOCK_SIZES = [16, 32, 64, 128, 256]
EPS = 2.0**-23


def multiply(isa: str, weight: QuantizedWeight, values: np.ndarray, *others: np.ndarray, threads: int = 1, level=4):
    if isa and isa not in supported_instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    model = sparse_matmul_nbits_model(weight)
    model.graph.node[0].attribute.append(helper.make_attribute("accuracy_level", level))
    with instruction_set(isa):
        session = create_session(model.SerializeToString(), threads)
    return session.run(None, feeds(values, weight.codes.shape[1], *others))[0]


def rounded_product(x: np.ndarray, weight: QuantizedWeight) -> tuple[np.ndarray, np.ndarray]:
    """One token's sums and the sums of magnitudes of what is added, float64 [O]. x: [K] float32."""
    columns = weight.codes.shape[1]
    total, magnitude = np.zeros(columns), np.zeros(columns)
    for first in range(0, len(x), 64):
        for b in range(weight.scales.shape[1]):
            rows = [j for j in range(first, min(first + 64, len(x))) if x[j] != 0]
            if not rows:
                continue
            of_block = slice(b * weight.block_size, (b + 1) * weight.block_size)
            integers = weight.codes[rows, of_block] - weight.zero_points[rows, b][:, None]
            a = x[rows] * weight.scales[rows, b]
            largest = np.max(np.abs(a))
            if largest == 0:
                continue
            if 2.0**-100 <= largest < np.inf:
                q = np.rint(a * (np.float32(127) / largest)).astype(np.int64)
                part = (q @ integers) * float(largest / np.float32(127))
                parts = np.abs(part)
            else:
                w = integers * weight.scales[rows, b].astype(np.float64)[:, None]
                part = x[rows].astype(np.float64) @ w
                parts = np.abs(x[rows].astype(np.float64)) @ np.abs(w)
            total[of_block] += part
            magnitude[of_block] += parts
    return total, magnitude


def assert_follows_specification(y, weight, values, bias, token_shift, offset):
    """Y: the sums of these integers, with no more rounding than the float32 additions need."""
    constant = [token_shift.astype(np.float64) * offset, bias.astype(np.float64)]
    with np.errstate(all="ignore"):
        for t, x in enumerate(values):
            total, magnitude = rounded_product(x, weight)
            expected = total + constant[0][t] + constant[1]
            in_range = magnitude < 1e38  # beyond it, sums overflow in some orders only
            bound = (len(x) / 64 + 70) * EPS * (magnitude + np.abs(constant[0][t]) + np.abs(constant[1])) + 1e-37
            assert (np.abs(y[t] - expected) <= bound)[in_range].all()
            special = ~np.isfinite(magnitude)
            np.testing.assert_array_equal(y[t][special], expected[special].astype(np.float32))


def random_inputs(rng, tokens: int, K: int, O: int):  # noqa: E741
    values = rng.standard_normal((tokens, K)) * (rng.random((tokens, K)) < 0.5)
    vectors = [rng.standard_normal(shape).astype(np.float32) for shape in (O, (tokens, 1), O)]
    return [values.astype(np.float32), *vectors]


@st.composite
def products(draw, tokens=tuple(FEW)):
    K = draw(st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 128, 200])))
    O = draw(st.one_of(st.integers(1, 300), st.sampled_from([512, 520, 1026])))  # noqa: E741
    code_type = draw(st.sampled_from(list(CODE_TYPES)))
    O += O % 2 if code_type.endswith("4") else 0  # noqa: E741
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = random_weight(rng, code_type, K, O, draw(st.sampled_from(BLOCK_SIZES)), draw(st.booleans()))
    inputs = random_inputs(rng, draw(st.sampled_from(tokens)), K, O)
    values, changed = inputs[0], draw(st.sampled_from(["", "specials", "tiny", "huge", "mixed", "zero scales"]))
    if changed == "specials":
        values[rng.random(values.shape) < 0.02] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    elif changed == "tiny":
        values *= np.float32(2.0 ** draw(st.integers(-150, -80)))
    elif changed == "huge":
        values *= np.float32(2.0**120)
    elif changed == "mixed":
        values *= 10.0 ** rng.integers(-30, 30, values.shape).astype(np.float32)
    elif changed == "zero scales":
        weight.scales[rng.random(weight.scales.shape) < 0.7] = 0
    return weight, inputs


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@settings(max_examples=80, deadline=None)
@given(case=products(), threads=st.sampled_from([1, 3]))
def test_the_integers_are_those_of_the_specification(isa, case, threads):
    weight, inputs = case
    with np.errstate(all="ignore"):
        assert_follows_specification(multiply(isa, weight, *inputs, threads=threads), weight, *inputs)


@pytest.mark.parametrize("isa", ROUNDS_ALWAYS)
@settings(max_examples=80, deadline=None)
@given(case=products(tokens=(6, 9, 12, 33, 70)), threads=st.sampled_from([1, 3]))
def test_many_tokens_are_rounded_like_few(isa, case, threads):
    weight, inputs = case
    with np.errstate(all="ignore"):
        assert_follows_specification(multiply(isa, weight, *inputs, threads=threads), weight, *inputs)


@pytest.mark.parametrize("isa", [isa for isa in INSTRUCTION_SETS if isa not in ROUNDS_ALWAYS])
def test_many_tokens_stay_float32(isa):
    rng = np.random.default_rng(5)
    weight = random_weight(rng, "uint4", 200, 96)
    inputs = random_inputs(rng, 9, 200, 96)
    assert_identical(multiply(isa, weight, *inputs), multiply(isa, weight, *inputs, level=0))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("code_type", CODE_TYPES)
@pytest.mark.parametrize("zero_points", [False, True])
def test_several_tasks_and_every_block_size(isa, code_type, zero_points):
    rng = np.random.default_rng(1)
    for block_size in BLOCK_SIZES:
        weight = random_weight(rng, code_type, 72, 4200, block_size, zero_points)
        for tokens in (2, 70 if isa in ROUNDS_ALWAYS else 8):
            inputs = random_inputs(rng, tokens, 72, 4200)
            assert_follows_specification(multiply(isa, weight, *inputs, threads=4), weight, *inputs)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 8, 20])
def test_tasks_that_share_the_channels(isa, tokens):
    if tokens > max(FEW) and isa not in ROUNDS_ALWAYS:
        pytest.skip("stays float32")
    rng = np.random.default_rng(6)
    weight = random_weight(rng, "int4", 2100, 96)
    inputs = random_inputs(rng, tokens, 2100, 96)
    y = multiply(isa, weight, *inputs, threads=4)
    assert_follows_specification(y, weight, *inputs)
    assert_identical(multiply(isa, weight, *inputs), y)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("code_type", ["int8", "uint8", "int4", "uint4"])
def test_the_largest_sums_do_not_saturate(isa, code_type):
    """Every row and value of a block at its largest: 64 * 127 * 255."""
    _, low, high = CODE_TYPES[code_type]
    for code, zero_point in ((low, high), (high, low)):
        codes, zero_points = np.full((64, 256), code), np.full((64, 8), zero_point)
        weight = QuantizedWeight(code_type, 32, codes, np.ones((64, 8), np.float32), zero_points)
        for sign in (1, -1):
            for tokens in (1, 12):
                expected = np.full((tokens, 256), sign * 64 * 127 * (code - zero_point), np.float32)
                values = np.full((tokens, 64), sign * 127, np.float32)
                np.testing.assert_array_equal(multiply(isa, weight, values), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_dropped_rows_do_not_matter(isa):
    rng = np.random.default_rng(2)
    weight = random_weight(rng, "int4", 192, 300)
    values = (rng.standard_normal((3, 192)) * (np.arange(192) % 2)).astype(np.float32)
    y = multiply(isa, weight, values)
    weight.codes[::2], weight.scales[::2], weight.zero_points[::2] = 3, 7, -2
    assert_identical(multiply(isa, weight, np.where(values == 0, np.float32(-0.0), values)), y)


def test_other_levels_stay_float32():
    rng = np.random.default_rng(3)
    weight = random_weight(rng, "int8", 100, 96, zero_points=False)
    inputs = random_inputs(rng, 2, 100, 96)
    exact = [multiply("", weight, *inputs, level=level) for level in (0, 1, 2, 3)]
    for y in exact[1:]:
        assert_identical(y, exact[0])
    rounded = multiply("", weight, *inputs)
    assert (rounded != exact[0]).mean() > 0.9
    assert np.linalg.norm(rounded - exact[0]) < 0.02 * np.linalg.norm(exact[0])


def test_levels_beyond_four_are_refused():
    weight = random_weight(np.random.default_rng(4), "int8", 8, 16)
    with pytest.raises(Exception, match="the attribute accuracy_level is 5; it must be from 0 to 4"):
        multiply("", weight, np.ones((1, 8), np.float32), level=5)
