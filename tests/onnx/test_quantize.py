"""Block quantization: layout, error bounds, and what the search for scales is worth."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from nm_export.onnx import quantize
from nm_export.onnx.matmul_nbits import quantize_matmul_nbits
from nm_export.onnx.quantize import WeightFormat, pack, quantize_blocks, squared_norm, unpack

FORMATS = [WeightFormat(bits, size, symmetric) for bits in (4, 8) for size in (16, 64) for symmetric in (True, False)]
TYPES = {4: TensorProto.UINT4, 8: TensorProto.UINT8}


def normal(K=104, O=24, seed=0):  # noqa: E741
    return np.random.default_rng(seed).standard_normal((K, O)).astype(np.float32)


def relative_error(weight, quantized):
    return (squared_norm(weight, quantized) / squared_norm(weight)) ** 0.5


def blocks(weight, format):
    """Weights by block, float64 [blocks, O, block_size], the last filled up with zeros."""
    K, size = len(weight), format.block_size
    filled = np.pad(weight, ((0, -K % size), (0, 0))).astype(np.float64)
    return filled.reshape(-1, size, weight.shape[1]).swapaxes(1, 2)


def spanning_grid(weight, format):
    """Blocks as rounded to the grid that spans each: float64 [blocks, O, block_size]."""
    part = blocks(weight, format)
    top, bottom = np.maximum(part.max(-1), 0)[..., None], np.minimum(part.min(-1), 0)[..., None]
    if format.symmetric:
        step = np.maximum(top, -bottom) / (2 ** (format.bits - 1) - 1)
        return step * np.rint(np.divide(part, step, out=np.zeros_like(part), where=step > 0))
    step = (top - bottom) / (2**format.bits - 1)
    step[step == 0] = 1
    zero = np.rint(-bottom / step)
    return step * (np.clip(np.rint(part / step) + zero, 0, 2**format.bits - 1) - zero)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_no_weight_is_further_than_its_block_s_grid_allows(format):
    weight = normal() * np.geomspace(1e-25, 1e25, 24, dtype=np.float32)
    made = quantize_blocks(weight, format)
    assert made.scales.shape == (-(-104 // format.block_size), 24)
    assert made.scales.dtype == made.zero_points.dtype == np.float32  # magnitudes that float16 does not have
    assert made.zero_points.shape == ((1,) if format.symmetric else made.scales.shape)
    assert made.codes.dtype == np.uint8
    if format.symmetric:
        assert made.zero_points == 2 ** (format.bits - 1)
        assert made.codes.min() >= (format.bits == 8)
    assert made.codes.max() < 2**format.bits
    got = made.dequantize()
    for column in range(24):
        for start in range(0, 104, format.block_size):
            block = weight[start : start + format.block_size, column]
            if format.symmetric:
                step = np.abs(block).max() / (2 ** (format.bits - 1) - 1)
            else:
                step = (max(block.max(), 0) - min(block.min(), 0)) / (2**format.bits - 1)
            error = np.square((got[start : start + format.block_size, column] - block) / step).sum()
            assert error <= len(block) * 0.25 * 1.0001


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_block_is_worse_than_on_the_grid_that_spans_it(data):
    """Any distribution, blocks of zeros and of one weight included; a float16 scale is off by half a unit."""
    format = WeightFormat(
        data.draw(st.sampled_from([4, 8])), data.draw(st.sampled_from([16, 32, 256])), data.draw(st.booleans())
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = (data.draw(st.integers(1, 300)), data.draw(st.integers(1, 9)))
    weight = rng.standard_normal(shape) ** data.draw(st.sampled_from([1, 3, 8])) + data.draw(
        st.sampled_from([0, 1, -9])
    )
    weight *= rng.random(shape) < data.draw(st.sampled_from([0.02, 0.5, 1]))
    weight = (weight * 10.0 ** data.draw(st.integers(-6, 3))).astype(np.float32)
    made = quantize_blocks(weight, format)
    got, own = blocks(made.dequantize(), format), blocks(weight, format)
    error, spanning = (np.linalg.norm(own - other, axis=-1) for other in (got, spanning_grid(weight, format)))
    assert not got[own == 0].any()
    off = 2.0**-11 if made.scales.dtype == np.float16 else 0
    assert (error <= spanning * (1 + 1e-4) + (off + 1e-5) * np.linalg.norm(own, axis=-1)).all()


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_scales_are_float16_where_that_takes_no_more_than_rounding(bits, symmetric):
    format = WeightFormat(bits, 32, symmetric)
    weight = normal() * 0.02
    weight[:, 3] = 0
    made = quantize_blocks(weight, format)
    assert made.scales.dtype == made.zero_points.dtype == np.float16
    assert not made.dequantize()[:, 3].any()
    for size in (1e-7, 1e8):  # scales below the normal numbers, above the largest
        other = weight.copy()
        other[32:64, 5] = np.linspace(-size, size, 32)
        made = quantize_blocks(other, format)
        assert made.scales.dtype == made.zero_points.dtype == np.float32
        assert relative_error(other[32:64, 5:6], made.dequantize()[32:64, 5:6]) < 0.1


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_codes_are_chosen_for_the_scales_as_they_are_stored(format):
    """Weights on the grid of float16 scales are the nearest of it, not those of scales before they were rounded."""
    weight = normal(512, 64)
    made = quantize_blocks(weight, format)
    assert made.scales.dtype == np.float16
    steps = np.repeat(made.scales.astype(np.float64), format.block_size, axis=0)[:512]
    zeros = np.broadcast_to(made.zero_points, made.scales.shape).repeat(format.block_size, axis=0)[:512]
    low, high = int(format.symmetric and format.bits == 8), 2**format.bits - 1
    nearest = np.clip(np.rint(weight / steps) + zeros, low, high)
    assert (made.codes != nearest).mean() < 1e-4  # near-ties


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_stored_as_onnx_stores_it(format):
    codes = quantize_blocks(normal(), format).codes
    stored = pack(codes, format.bits)
    tensor = onnx.helper.make_tensor("t", TYPES[format.bits], codes.shape, stored.tobytes(), raw=True)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(int), codes.astype(int))
    np.testing.assert_array_equal(unpack(stored, codes.shape, format.bits), codes)


@pytest.mark.parametrize(("symmetric", "gain"), [(True, 0.12), (False, 0.01)])
@pytest.mark.parametrize("block_size", [32, 128])
def test_searching_lowers_the_error_of_4_bits(block_size, symmetric, gain, monkeypatch):
    weight, format = normal(1024, 64), WeightFormat(4, block_size, symmetric)
    searched = relative_error(weight, quantize_blocks(weight, format).dequantize())
    assert searched < relative_error(weight, quantize_matmul_nbits(weight, format).dequantize())
    monkeypatch.setattr(quantize, "_SHRINK", {(4, symmetric): (1.0,)})
    spanning = relative_error(weight, quantize_blocks(weight, format).dequantize())
    assert searched < (1 - gain) * spanning


@pytest.mark.parametrize("symmetric", [True, False])
def test_8_bits_in_blocks_of_inputs_are_as_near_as_those_of_matmul_nbits(symmetric):
    weight, format = normal(1024, 64), WeightFormat(8, 32, symmetric)
    error = relative_error(weight, quantize_blocks(weight, format).dequantize())
    assert error < 1.05 * relative_error(weight, quantize_matmul_nbits(weight, format).dequantize())


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_zeros_stay_zeros(format):
    weight = normal()
    weight[::3] = 0
    weight[:, 5] = 0
    got = quantize_blocks(weight, format).dequantize()
    assert not got[::3].any()
    assert not got[:, 5].any()
    assert np.isfinite(got).all()


@pytest.mark.parametrize("tiny", [1.4e-45, 1e-41, 1e-38])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_the_smallest_weights_stay_finite(format, tiny):
    weight = normal() * np.float32(tiny)
    got = quantize_blocks(weight, format).dequantize()
    assert np.isfinite(got).all()
    assert np.abs(got - weight).max() <= np.abs(weight).max()


@pytest.mark.parametrize("format", [WeightFormat(4, 32), WeightFormat(8, 256, symmetric=False)], ids=str)
def test_columns_do_not_depend_on_each_other(format, monkeypatch):
    weight = normal()
    whole = quantize_blocks(weight, format)
    monkeypatch.setattr(quantize, "_CHUNK", 300)
    for made, columns in (
        (quantize_blocks(weight, format), slice(None)),
        (quantize_blocks(weight[:, 7:9], format), slice(7, 9)),
    ):
        np.testing.assert_array_equal(made.codes, whole.codes[:, columns])
        np.testing.assert_array_equal(made.scales, whole.scales[:, columns])
    assert squared_norm(weight) == pytest.approx(np.square(weight.astype(np.float64)).sum(), rel=1e-12)


def test_a_mapped_file_and_a_transposed_weight_give_what_an_array_gives(tmp_path):
    weight, format = normal(), WeightFormat(4, 32, symmetric=False)
    expected = quantize_blocks(weight, format)
    weight.tofile(tmp_path / "weight")
    mapped = np.memmap(tmp_path / "weight", np.float32, "r", shape=weight.shape)
    for other in (mapped, np.asfortranarray(weight)):
        made = quantize_blocks(other, format)
        for name in ("codes", "scales", "zero_points"):
            np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    weight = normal()
    weight[3, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_blocks(weight, WeightFormat(4))
