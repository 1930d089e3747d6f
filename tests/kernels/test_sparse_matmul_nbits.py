"""NMSparseMatMulNBits against float64 sums of the dequantized weight, within the bound of docs/semantics.md."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.kernels.nbits_sessions import (
    CODE_TYPES,
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
    instruction_set,
    supported_instruction_sets,
)

BLOCK_SIZES = [16, 32, 64, 128, 256]


def multiply(isa: str, weight: QuantizedWeight, values: np.ndarray, *others: np.ndarray, threads: int = 1):
    """Y, of values' dtype."""
    if isa and isa not in supported_instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    dtype = next(name for name, (numpy_type, _) in DTYPES.items() if values.dtype == numpy_type)
    with instruction_set(isa):
        session = create_session(sparse_matmul_nbits_model(weight, dtype).SerializeToString(), threads)
    return session.run(None, feeds(values, weight.codes.shape[1], *others))[0].astype(values.dtype)


def assert_follows_specification(y, weight, values, bias, token_shift, offset):
    """Y of finite inputs: close to the exact sums; as rounded where T is narrower than float32, or infinite beyond."""
    w = weight.dequantized()
    v, b, e, o = (a.astype(np.float64) for a in (values, bias, token_shift, offset))
    exact = v @ w + e * o + b
    bound = (len(w) + 4) * 2.0**-23 * (np.abs(v) @ np.abs(w) + np.abs(e * o) + np.abs(b))
    if values.dtype != np.float32:
        info = ml_dtypes.finfo(values.dtype)
        bound += float(info.eps) / 2 * (np.abs(exact) + bound) + float(info.smallest_subnormal)
        may_overflow = np.abs(exact) + bound > float(info.max)
        exact = np.where(may_overflow & np.isinf(y), np.copysign(np.inf, exact), exact)
    assert y.dtype == values.dtype
    assert y.shape == exact.shape
    with np.errstate(invalid="ignore"):
        assert ((np.abs(y.astype(np.float64) - exact) <= bound) | (y == exact)).all()


def random_inputs(rng, leading: tuple[int, ...], K: int, O: int, dtype: str, kept: float):  # noqa: E741
    values = rng.standard_normal((*leading, K)) * (rng.random((*leading, K)) < kept)
    vectors = [rng.standard_normal(shape).astype(np.float32) for shape in (O, (*leading, 1), O)]
    return [values.astype(DTYPES[dtype][0]), *vectors]


@st.composite
def products(draw):
    K = draw(st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 128, 200, 300, 1100])))
    O = draw(st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 66, 127, 128, 130, 200, 520, 1026, 4200])))  # noqa: E741
    leading = draw(st.sampled_from([(), (1,), (0,), (2,), (5,), (17,), (130,), (1, 1), (2, 3), (2, 0)]))
    code_type = draw(st.sampled_from(list(CODE_TYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    O += O % 2 if code_type.endswith("4") else 0  # noqa: E741
    weight = random_weight(rng, code_type, K, O, draw(st.sampled_from(BLOCK_SIZES)), draw(st.booleans()))
    kept = draw(st.sampled_from([0, 0.1, 0.5, 1]))
    return weight, random_inputs(rng, leading, K, O, draw(st.sampled_from(list(DTYPES))), kept)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@settings(max_examples=150, deadline=None)
@given(case=products(), threads=st.sampled_from([1, 2, 4]))
def test_follows_the_specification(isa, case, threads):
    weight, inputs = case
    assert_follows_specification(multiply(isa, weight, *inputs, threads=threads), weight, *inputs)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 40])
@pytest.mark.parametrize("code_type", CODE_TYPES)
def test_every_way_of_multiplying(isa, code_type, tokens):
    """Few and many tokens, zero points and none, every block size, on a shape that is cut to several tasks."""
    rng = np.random.default_rng(tokens)
    for block_size in BLOCK_SIZES:
        for zero_points in (False, True):
            weight = random_weight(rng, code_type, 80, 2600, block_size, zero_points)
            inputs = random_inputs(rng, (tokens,), 80, 2600, "float32", 0.5)
            assert_follows_specification(multiply(isa, weight, *inputs, threads=4), weight, *inputs)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 2, 20])
@pytest.mark.parametrize("code_type", CODE_TYPES)
def test_every_code_and_zero_point_is_read_exactly(isa, code_type, tokens):
    _, low, high = CODE_TYPES[code_type]
    every = np.arange(low, high + 1)
    block_size, columns = 32, max(32, every.size)
    codes = np.tile(np.resize(every, columns), (every.size, 1))
    zero_points = np.repeat(every[:, None], columns // block_size, axis=1)
    weight = QuantizedWeight(code_type, block_size, codes, np.full(zero_points.shape, 0.5, np.float32), zero_points)
    for channel in range(0, every.size, max(1, every.size // 16)):
        values = np.zeros((tokens, every.size), np.float32)
        values[:, channel] = 2
        expected = np.tile((codes[channel] - every[channel]).astype(np.float32), (tokens, 1))
        np.testing.assert_array_equal(multiply(isa, weight, values), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 2, 12, 70])
@pytest.mark.parametrize("code_type", ["int8", "uint4"])
def test_a_special_value_reaches_every_column_of_its_token_and_no_other(isa, code_type, tokens):
    rng = np.random.default_rng(0)
    K, O = 96, 150  # noqa: E741
    weight = random_weight(rng, code_type, K, O, zero_points=code_type == "uint4")
    w = weight.dequantized()
    for special in (np.nan, np.inf, -np.inf):
        values = rng.standard_normal((tokens, K)).astype(np.float32)
        values[tokens // 2, 70] = special
        y = multiply(isa, weight, values)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(y[tokens // 2], (special * w[70]).astype(np.float32))
        assert np.isfinite(np.delete(y, tokens // 2, axis=0)).all()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("code_type", ["int8", "int4"])
@pytest.mark.parametrize("tokens", [1, 2, 16, 130])
def test_rows_of_dropped_channels_do_not_matter(isa, code_type, tokens):
    """Other codes and scales in the rows of zeros change no bit, and neither does the sign of the zeros."""
    rng = np.random.default_rng(1)
    kept = np.arange(256) % 2 == 0
    values = (rng.standard_normal((tokens, 256)) * kept).astype(np.float32)
    weight = random_weight(rng, code_type, 256, 300, zero_points=False)
    y = multiply(isa, weight, values)
    assert_identical(multiply(isa, weight, np.where(kept, values, np.float32(-0.0))), y)
    other = random_weight(rng, code_type, 256, 300, zero_points=False)
    mixed = dataclasses.replace(
        weight,
        codes=np.where(kept[:, None], weight.codes, other.codes),
        scales=np.where(kept[:, None], weight.scales, other.scales),
    )
    assert_identical(multiply(isa, mixed, values), y)


@pytest.mark.parametrize("tokens", [1, 3, 100])
def test_threads_change_nothing(tokens):
    rng = np.random.default_rng(2)
    weight = random_weight(rng, "int4", 512, 4100)
    inputs = random_inputs(rng, (tokens,), 512, 4100, "float32", 0.5)
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
@pytest.mark.parametrize("value", [0, 3])
def test_zero_points_may_be_fed(code_type, value):
    """What is not a constant of the model is read in every call."""
    rng = np.random.default_rng(4)
    weight = random_weight(rng, code_type, 70, 96)
    weight = dataclasses.replace(weight, zero_points=np.full((70, 3), value))
    model = sparse_matmul_nbits_model(weight)
    initializer = next(i for i in model.graph.initializer if i.name == "zero_points")
    model.graph.initializer.remove(initializer)
    model.graph.input.append(helper.make_tensor_value_info("narrow", TensorProto.INT8, [70, 3]))
    cast = helper.make_node("Cast", ["narrow"], ["zero_points"], to=CODE_TYPES[code_type][0])
    model.graph.node.insert(0, cast)
    model.opset_import[0].version = 21
    model.ir_version = 10
    values, *others = random_inputs(rng, (4,), 70, 96, "float32", 0.5)
    fed = feeds(values, 96, *others) | {"narrow": np.full((70, 3), value, np.int8)}
    y = create_session(model.SerializeToString()).run(None, fed)[0]
    assert_follows_specification(y, weight, values, *others)


def test_the_shape_of_y_is_known_before_it_runs():
    weight = random_weight(np.random.default_rng(5), "int4", 8, 6)
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
            {"scales": (8, 3)},
            "scales has shape [8, 3]; weight has K = 8 rows and blocks of 32 columns, so it must be [8, 2]",
        ),
        (
            {"zero_points": (2, 8)},
            "zero_points has shape [2, 8]; weight has K = 8 rows and blocks of 32 columns, so it must be [8, 2]",
        ),
        ({"codes": (8, 39)}, "weight has O = 39 columns of 4 bits; O must be even, so that every row begins at a byte"),
    ],
)
def test_bad_shapes_are_refused_in_one_sentence(changes, sentence):
    weight = random_weight(np.random.default_rng(6), "int4", 8, 40)
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
    model = sparse_matmul_nbits_model(random_weight(np.random.default_rng(7), "int8", 8, 40), name="proj")
    del model.graph.node[0].attribute[:]
    if block_size is not None:
        model.graph.node[0].attribute.append(helper.make_attribute("block_size", block_size))
    with pytest.raises(Exception, match="NMSparseMatMulNBits node 'proj'") as caught:
        create_session(model.SerializeToString())
    assert sentence in str(caught.value)


def test_other_types_of_codes_are_refused():
    model = sparse_matmul_nbits_model(random_weight(np.random.default_rng(8), "int8", 8, 40))
    for initializer in model.graph.initializer:
        if initializer.name in ("weight", "zero_points"):
            codes = onnx.numpy_helper.to_array(initializer).astype(np.int16)
            initializer.CopyFrom(onnx.numpy_helper.from_array(codes, initializer.name))
    with pytest.raises(Exception, match="int16"):
        create_session(model.SerializeToString())
