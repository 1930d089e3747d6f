"""NMSparseMatMul against float64 sums, within the bound of docs/semantics.md."""

import math
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.matmul_sessions import TYPES, feeds, multiply, sparse_matmul_model, with_constants
from tests.kernels.sessions import (
    DTYPES,
    INSTRUCTION_SETS,
    assert_identical,
    create_session,
    examples,
    instruction_set,
    supported_instruction_sets,
)


def session_for(isa: str, dtype: str = "float32", weight_dtype: str = "float32", threads: int = 1):
    if isa not in supported_instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    with instruction_set(isa):
        return create_session(sparse_matmul_model(dtype, weight_dtype), threads)


def assert_follows_specification(y, values, weight, bias, token_shift, offset):
    """Y of finite inputs: close to the exact sums; exactly as rounded where T is narrower than float32."""
    v, w, b, e, o = (a.astype(np.float64) for a in (values, weight, bias, token_shift, offset))
    exact = v @ w + e * o + b
    magnitude = np.abs(v) @ np.abs(w) + np.abs(e * o) + np.abs(b)
    bound = (values.shape[-1] + 2) * 2.0**-23 * magnitude
    if values.dtype != np.float32:
        info = ml_dtypes.finfo(values.dtype)
        bound += float(info.eps) / 2 * (np.abs(exact) + bound) + float(info.smallest_subnormal)
    assert y.dtype == values.dtype
    assert y.shape == exact.shape
    assert (np.abs(y.astype(np.float64) - exact) <= bound).all()


@st.composite
def products(draw):
    K = draw(st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 128, 200, 256, 1000, 1600])))
    O = draw(st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 127, 128, 129, 200, 520, 1025, 2100])))  # noqa: E741
    leading = draw(st.sampled_from([(), (1,), (0,), (2,), (5,), (17,), (130,), (1, 1), (2, 3), (2, 0), (300,)]))
    dtype, weight_dtype = draw(st.sampled_from(TYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.standard_normal((*leading, K)) * (rng.random((*leading, K)) < draw(st.sampled_from([0, 0.1, 0.5, 1])))
    inputs = [
        values.astype(DTYPES[dtype][0]),
        rng.standard_normal((K, O)).astype(DTYPES[weight_dtype][0]),
        rng.standard_normal(O).astype(np.float32),
        rng.standard_normal((*leading, 1)).astype(np.float32),
        rng.standard_normal(O).astype(np.float32),
    ]
    return (dtype, weight_dtype), inputs


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@settings(max_examples=examples(200), deadline=None)
@given(case=products(), threads=st.sampled_from([1, 2, 4]))
def test_follows_the_specification(isa, case, threads):
    dtypes, inputs = case
    assert_follows_specification(multiply(session_for(isa, *dtypes, threads), *inputs), *inputs)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 8, 16, 33, 600])
def test_every_number_of_tokens(isa, tokens):
    """The ways of multiplying few and many tokens, on a shape that is cut to several tasks each way."""
    rng = np.random.default_rng(tokens)
    values = rng.standard_normal((tokens, 144)).astype(np.float32) * (rng.random((tokens, 144)) < 0.5)
    weight = rng.standard_normal((144, 2600)).astype(np.float32)
    inputs = [values, weight, *(rng.standard_normal(s).astype(np.float32) for s in (2600, (tokens, 1), 2600))]
    assert_follows_specification(multiply(session_for(isa, threads=4), *inputs), *inputs)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 2, 12, 70])
def test_a_special_value_reaches_every_column_of_its_token_and_no_other(isa, tokens):
    rng = np.random.default_rng(0)
    K, O = 96, 150  # noqa: E741
    weight = np.abs(rng.standard_normal((K, O))).astype(np.float32)
    session = session_for(isa)
    for special in (np.nan, np.inf, -np.inf):
        values = rng.standard_normal((tokens, K)).astype(np.float32)
        values[tokens // 2, 70] = special
        y = multiply(session, values, weight)
        expected = np.broadcast_to(np.float32(special), O)
        np.testing.assert_array_equal(y[tokens // 2], expected)
        assert np.isfinite(np.delete(y, tokens // 2, axis=0)).all()
    values = np.zeros((tokens, K), np.float32)
    values[:, 3] = np.inf
    assert np.isnan(multiply(session, values, np.zeros((K, O), np.float32))).all()
    shift = np.zeros((tokens, 1), np.float32)
    shift[0] = np.nan
    y = multiply(session, np.zeros_like(values), weight, np.zeros(O, np.float32), shift, np.ones(O, np.float32))
    assert np.isnan(y[0]).all()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 2, 16, 130])
def test_rows_of_dropped_channels_do_not_matter(isa, tokens):
    """Twice as large weights in the rows of zeros change no bit, and neither does the sign of the zeros."""
    rng = np.random.default_rng(1)
    kept = np.arange(256) % 2 == 0
    values = (rng.standard_normal((tokens, 256)) * kept).astype(np.float32)
    weight = rng.standard_normal((256, 300)).astype(np.float32)
    session = session_for(isa)
    y = multiply(session, values, weight)
    assert_identical(multiply(session, np.where(kept, values, np.float32(-0.0)), weight), y)
    assert_identical(multiply(session, values, np.where(kept[:, None], weight, 2 * weight)), y)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("weight_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_widens_every_weight_of_sixteen_bits(isa, weight_dtype, tokens):
    finite = np.arange(2**16, dtype=np.uint16).view(DTYPES[weight_dtype][0])
    with np.errstate(invalid="ignore"):
        finite = finite[np.isfinite(finite.astype(np.float32))]
    if weight_dtype == "bfloat16":  # the Cast of the model, not the operator, may flush these
        finite = finite[np.abs(finite.astype(np.float32)) >= np.finfo(np.float32).tiny]
    values = np.zeros((tokens, 3), np.float32)
    values[:, 1] = 1
    weight = np.stack([finite, finite, finite])
    y = multiply(session_for(isa, "float32", weight_dtype), values, weight)
    np.testing.assert_array_equal(y, np.broadcast_to(finite.astype(np.float32), y.shape))


@pytest.mark.parametrize("tokens", [1, 3, 200])
def test_threads_change_nothing(tokens):
    rng = np.random.default_rng(2)
    values = rng.standard_normal((tokens, 512)).astype(np.float32) * (rng.random((tokens, 512)) < 0.5)
    weight = rng.standard_normal((512, 3000)).astype(np.float32)
    alone = multiply(create_session(sparse_matmul_model(), 1), values, weight)
    for threads in (2, 4):
        assert_identical(multiply(create_session(sparse_matmul_model(), threads), values, weight), alone)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("weight_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kept", "tokens"), [(0.5, 2), (0.5, 5), (0.5, 12), (1, 12), (0.5, 40), (1, 40)])
def test_no_call_differs_from_the_one_before(isa, weight_dtype, kept, tokens):
    """However a call is computed, which is found out in the first ones."""
    rng = np.random.default_rng(5)
    values = rng.standard_normal((tokens, 200)).astype(np.float32) * (rng.random((tokens, 200)) < kept)
    weight = rng.standard_normal((200, 410)).astype(DTYPES[weight_dtype][0])
    session = session_for(isa, "float32", weight_dtype, threads=2)
    inputs = feeds(values, weight)
    first = session.run(None, inputs)[0]
    assert_follows_specification(first, values, weight, *(inputs[k] for k in ("bias", "token_shift", "offset")))
    for _ in range(70):
        assert_identical(session.run(None, inputs)[0], first)


def test_one_session_in_many_threads():
    rng = np.random.default_rng(3)
    session = create_session(sparse_matmul_model(), 2)
    weight = rng.standard_normal((256, 2100)).astype(np.float32)
    inputs = [rng.standard_normal((rng.integers(1, 80), 256)).astype(np.float32) for _ in range(24)]
    expected = [multiply(session, x, weight) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for actual, wanted in zip(pool.map(lambda x: multiply(session, x, weight), inputs), expected, strict=True):
            assert_identical(actual, wanted)


@pytest.mark.parametrize("offset", [4, 12, 20])
@pytest.mark.parametrize("tokens", [1, 2, 64])
def test_weights_need_no_alignment(offset, tokens):
    """Where external data begins decides how a weight is aligned."""
    rng = np.random.default_rng(4)
    memory = np.zeros(80 * 333 * 4 + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    weight = memory[start : start + 80 * 333 * 4].view(np.float32).reshape(80, 333)
    weight[:] = rng.standard_normal((80, 333))
    values = rng.standard_normal((tokens, 80)).astype(np.float32)
    inputs = [values, weight, *(rng.standard_normal(s).astype(np.float32) for s in (333, (tokens, 1), 333))]
    assert_follows_specification(multiply(create_session(sparse_matmul_model()), *inputs), *inputs)


def test_the_shape_of_y_is_known_before_it_runs():
    session = create_session(sparse_matmul_model(values_shape=["batch", "tokens", 8]))
    assert session.get_outputs()[0].shape in ([], ["batch", "tokens", None])
    y = multiply(session, np.ones((2, 3, 8), np.float32), np.ones((8, 5), np.float32))
    assert y.shape == (2, 3, 5)
    assert math.prod(y.shape) == (y == 8).sum()


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"values": ()}, "values has shape [] and weight [8, 6]; they must be [..., K] and [K, O] with K > 0"),
        ({"values": (2, 7)}, "values has shape [2, 7] and weight [8, 6]"),
        ({"weight": (8, 6, 1)}, "weight [8, 6, 1]"),
        ({"values": (2, 0), "weight": (0, 6)}, "values has shape [2, 0] and weight [0, 6]"),
        ({"bias": (8,)}, "bias has shape [8]; weight has O = 6 columns, so it must be [6]"),
        ({"offset": (1,)}, "offset has shape [1]; weight has O = 6 columns, so it must be [6]"),
        ({"token_shift": (2,)}, "token_shift has shape [2]; values has shape [2, 8], so it must be [2, 1]"),
    ],
)
def test_bad_shapes_are_refused_in_one_sentence(shapes, sentence):
    session = create_session(sparse_matmul_model(name="proj"))
    good = {"values": (2, 8), "weight": (8, 6), "bias": (6,), "token_shift": (2, 1), "offset": (6,)}
    arrays = {name: np.zeros(shape, np.float32) for name, shape in (good | shapes).items()}
    with pytest.raises(Exception, match="NMSparseMatMul node 'proj'") as caught:
        session.run(None, arrays)
    assert sentence in str(caught.value)
    assert session.run(None, feeds(np.ones((2, 8), np.float32), np.ones((8, 6), np.float32)))[0].sum() == 96


@pytest.mark.parametrize(("bias", "sentence"), [((6,), None), ((5,), "bias has shape [5]; weight has O = 6 columns")])
def test_shapes_of_constants_are_checked_too(bias, sentence):
    """These are read when the model is opened."""
    constants = {"weight": np.ones((8, 6), np.float32), "bias": np.ones(bias, np.float32)}
    session = create_session(with_constants(sparse_matmul_model(), constants))
    inputs = feeds(np.ones((2, 8), np.float32), np.ones((8, 6), np.float32))
    for name in constants:
        del inputs[name]
    if sentence is None:
        assert (session.run(None, inputs)[0] == 9).all()
        return
    for _ in range(2):
        with pytest.raises(Exception, match="NMSparseMatMul node") as caught:
            session.run(None, inputs)
        assert sentence in str(caught.value)


def test_an_unknown_instruction_set_is_refused():
    with instruction_set("sse9"), pytest.raises(Exception, match="NM_EXPORT_ISA must be portable"):
        create_session(sparse_matmul_model())
