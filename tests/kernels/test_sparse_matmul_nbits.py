"""NMSparseMatMulNBits against float64 sums of the dequantized weight, within the bound of docs/semantics.md."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.kernels.nbits_reference import (
    BLOCK_SIZES,
    assert_follows_specification,
    products,
    random_inputs,
    unusual_products,
)
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

LEADING = [(), (1,), (0,), (2,), (5,), (17,), (130,), (1, 1), (2, 3), (2, 0)]
COLUMNS = [*range(41), 63, 64, 66, 127, 128, 130, 200, 520, 1026, 4200]


def multiply(isa: str, weight: QuantizedWeight, values: np.ndarray, *others: np.ndarray, threads: int = 1):
    """Y, of values' dtype."""
    if isa and isa not in supported_instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    dtype = next(name for name, (numpy_type, _) in DTYPES.items() if values.dtype == numpy_type)
    with instruction_set(isa):
        session = create_session(sparse_matmul_nbits_model(weight, dtype).SerializeToString(), threads)
    return session.run(None, feeds(values, weight.codes.shape[1], *others))[0].astype(values.dtype)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@settings(max_examples=examples(150), deadline=None)
@given(case=products(LEADING, COLUMNS), threads=st.sampled_from([1, 2, 4]))
def test_follows_the_specification(isa, case, threads):
    weight, inputs = case
    assert_follows_specification(multiply(isa, weight, *inputs, threads=threads), weight, *inputs)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@settings(max_examples=examples(80), deadline=None)
@given(case=unusual_products([1, 2, 16, 17, 70]))
def test_nan_infinite_tiny_and_huge_values(isa, case):
    weight, inputs = case
    assert_follows_specification(multiply(isa, weight, *inputs), weight, *inputs)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("code_type", CODE_TYPES)
def test_every_way_of_multiplying(isa, code_type, tokens):
    """Few and many tokens, every kind of zero points and block size, on a shape that is cut to several tasks."""
    rng = np.random.default_rng(tokens)
    for block_size in BLOCK_SIZES:
        for kind in ZERO_POINTS:
            weight = random_weight(rng, code_type, 300, 2600, block_size, kind)
            inputs = random_inputs(rng, (tokens,), 300, 2600)
            assert_follows_specification(multiply(isa, weight, *inputs, threads=4), weight, *inputs)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 2, 20])
@pytest.mark.parametrize("code_type", CODE_TYPES)
@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
def test_every_code_and_zero_point_is_read_exactly(isa, scale_dtype, code_type, tokens):
    """Each code with each zero point, half-way ones included, and each in another block."""
    every = np.arange(CODE_TYPES[code_type][1] + 1)
    K, block_size = every.size, 16
    codes = np.repeat(every[:, None], K, axis=1)
    zero_points = np.stack([np.roll(every, block) + 0.5 for block in range(K // block_size)]).astype(scale_dtype)
    weight = QuantizedWeight(code_type, block_size, codes, np.full_like(zero_points, 0.5), zero_points)
    for channel in range(0, K, max(1, K // 16)):
        values = np.zeros((tokens, K), np.float32)
        values[:, channel] = 4
        expected = np.tile(2 * (codes[channel] - zero_points[channel // block_size].astype(np.float32)), (tokens, 1))
        np.testing.assert_array_equal(multiply(isa, weight, values), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 2, 12, 70])
@pytest.mark.parametrize("code_type", CODE_TYPES)
@pytest.mark.parametrize("zero_points", ZERO_POINTS)
def test_a_special_value_reaches_every_column_of_its_token_and_no_other(isa, zero_points, code_type, tokens):
    rng = np.random.default_rng(0)
    K, O = 96, 150  # noqa: E741
    weight = random_weight(rng, code_type, K, O, zero_points=zero_points)
    for special in (np.nan, np.inf, -np.inf):
        inputs = random_inputs(rng, (tokens,), K, O, kept=1)
        inputs[0][tokens // 2, 70] = special
        y = multiply(isa, weight, *inputs)
        assert not np.isfinite(y[tokens // 2]).any()
        assert np.isfinite(np.delete(y, tokens // 2, axis=0)).all()
        assert_follows_specification(y, weight, *inputs)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("code_type", CODE_TYPES)
@pytest.mark.parametrize("tokens", [1, 2, 16, 130])
def test_codes_of_dropped_channels_do_not_matter(isa, code_type, tokens):
    """Other codes in the rows of zeros change no bit, and neither does the sign of the zeros."""
    rng = np.random.default_rng(1)
    kept = np.arange(256) % 2 == 0
    values = (rng.standard_normal((tokens, 256)) * kept).astype(np.float32)
    weight = random_weight(rng, code_type, 256, 300, zero_points="symmetric")
    y = multiply(isa, weight, values)
    assert_identical(multiply(isa, weight, np.where(kept, values, np.float32(-0.0))), y)
    other = random_weight(rng, code_type, 256, 300)
    mixed = dataclasses.replace(weight, codes=np.where(kept[:, None], weight.codes, other.codes))
    assert_identical(multiply(isa, mixed, values), y)


@pytest.mark.parametrize("tokens", [1, 3, 100])
def test_threads_change_nothing(tokens):
    rng = np.random.default_rng(2)
    weight = random_weight(rng, "uint4", 512, 4100)
    inputs = random_inputs(rng, (tokens,), 512, 4100)
    alone = multiply("", weight, *inputs)
    for threads in (2, 4):
        assert_identical(multiply("", weight, *inputs, threads=threads), alone)


def test_one_session_in_many_threads():
    rng = np.random.default_rng(3)
    weight = random_weight(rng, "uint4", 256, 2100)
    session = create_session(sparse_matmul_nbits_model(weight).SerializeToString(), 2)
    inputs = [feeds(rng.standard_normal((rng.integers(1, 80), 256)).astype(np.float32), 2100) for _ in range(24)]
    expected = [session.run(None, i)[0] for i in inputs]
    with ThreadPoolExecutor(4) as pool:
        for actual, wanted in zip(pool.map(lambda i: session.run(None, i)[0], inputs), expected, strict=True):
            assert_identical(actual, wanted)


@pytest.mark.parametrize("code_type", CODE_TYPES)
@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 96)])
def test_zero_points_may_be_fed(code_type, scale_dtype, shape):
    """What is not a constant of the model is read in every call."""
    rng = np.random.default_rng(4)
    weight = random_weight(rng, code_type, 70, 96, scale_dtype=scale_dtype)
    model = sparse_matmul_nbits_model(weight)
    initializer = next(i for i in model.graph.initializer if i.name == "zero_points")
    model.graph.initializer.remove(initializer)
    model.graph.input.append(helper.make_tensor_value_info("zero_points", initializer.data_type, None))
    session = create_session(model.SerializeToString())
    inputs = random_inputs(rng, (4,), 70, 96)
    for value in (0, 8, 2.5):
        fed = dataclasses.replace(weight, zero_points=np.full(shape, value, scale_dtype))
        y = session.run(None, feeds(inputs[0], 96, *inputs[1:]) | {"zero_points": fed.zero_points})[0]
        assert_follows_specification(y, fed, *inputs)


def test_the_shape_of_y_is_known_before_it_runs():
    weight = random_weight(np.random.default_rng(5), "uint4", 8, 6)
    session = create_session(sparse_matmul_nbits_model(weight, values_shape=["batch", "tokens", 8]).SerializeToString())
    assert session.get_outputs()[0].shape == ["batch", "tokens", 6]
    assert session.run(None, feeds(np.ones((2, 3, 8), np.float32), 6))[0].shape == (2, 3, 6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"values": (2, 7)}, "values has shape [2, 7] and weight [8, 40]; they must be [..., K] and [K, O] with K > 0"),
        ({"bias": (8,)}, "bias has shape [8]; weight has O = 40 columns, so it must be [40]"),
        ({"offset": (1,)}, "offset has shape [1]; weight has O = 40 columns, so it must be [40]"),
        ({"token_shift": (2,)}, "token_shift has shape [2]; values has shape [2, 8], so it must be [2, 1]"),
        (
            {"scales": (8, 2)},
            "scales has shape [8, 2]; weight has O = 40 columns and blocks of 32 rows, so it must be [1, 40]",
        ),
        (
            {"zero_points": (8, 2)},
            "zero_points has shape [8, 2]; weight has O = 40 columns and blocks of 32 rows, "
            "so it must be [1, 40] or [1]",
        ),
        ({"codes": (8, 39)}, "weight has O = 39 columns of 4 bits; O must be even, so that every row begins at a byte"),
    ],
)
def test_bad_shapes_are_refused_in_one_sentence(changes, sentence):
    weight = random_weight(np.random.default_rng(6), "uint4", 8, 40)
    in_weight = {name: np.ones(shape, np.float32) for name, shape in changes.items() if hasattr(weight, name)}
    model = sparse_matmul_nbits_model(dataclasses.replace(weight, **in_weight), name="proj")
    fed = feeds(np.ones((2, 8), np.float32), 40)
    fed |= {name: np.zeros(shape, np.float32) for name, shape in changes.items() if name in fed}
    with pytest.raises(Exception, match="NMSparseMatMulNBits node 'proj'") as caught:
        create_session(model.SerializeToString()).run(None, fed)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("block_size", "sentence"),
    [
        (None, "the integer attribute block_size is missing"),
        (8, "the attribute block_size is 8; it must be from 16 to 256"),
        (512, "the attribute block_size is 512; it must be from 16 to 256"),
        (48, "the attribute block_size is 48; it must be a power of two"),
    ],
)
def test_bad_block_sizes_are_refused_when_the_model_is_opened(block_size, sentence):
    model = sparse_matmul_nbits_model(random_weight(np.random.default_rng(7), "uint8", 8, 40), name="proj")
    del model.graph.node[0].attribute[:]
    if block_size is not None:
        model.graph.node[0].attribute.append(helper.make_attribute("block_size", block_size))
    with pytest.raises(Exception, match="NMSparseMatMulNBits node 'proj'") as caught:
        create_session(model.SerializeToString())
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("name", "numpy_type"),
    [("weight", np.int16), ("weight", np.int8), ("zero_points", np.uint8), ("scales", np.float64)],
)
def test_other_types_are_refused_when_the_model_is_opened(name, numpy_type):
    """Those of layouts with blocks along the outputs among them."""
    model = sparse_matmul_nbits_model(random_weight(np.random.default_rng(8), "uint8", 8, 40))
    initializer = next(i for i in model.graph.initializer if i.name == name)
    other = onnx.numpy_helper.to_array(initializer).astype(numpy_type)
    initializer.CopyFrom(onnx.numpy_helper.from_array(other, name))
    with pytest.raises(Exception, match="NMSparseMatMulNBits"):
        create_session(model.SerializeToString())


def test_scales_and_zero_points_are_of_one_type():
    weight = random_weight(np.random.default_rng(9), "uint8", 8, 40)
    model = sparse_matmul_nbits_model(dataclasses.replace(weight, zero_points=weight.zero_points.astype(np.float16)))
    with pytest.raises(Exception, match="NMSparseMatMulNBits"):
        create_session(model.SerializeToString())
