"""Block quantization: layout, error bounds, and what the search for scales is worth."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from nm_export.onnx import quantize
from nm_export.onnx.matmul_nbits import quantize_matmul_nbits
from nm_export.onnx.quantize import WeightFormat, pack, quantize_blocks, squared_norm, unpack

FORMATS = [WeightFormat(bits, size, symmetric) for bits in (4, 8) for size in (16, 64) for symmetric in (True, False)]
TYPES = {
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
}


def normal(K=24, O=104, seed=0):  # noqa: E741
    return np.random.default_rng(seed).standard_normal((K, O)).astype(np.float32)


def relative_error(weight, quantized):
    return (squared_norm(weight, quantized) / squared_norm(weight)) ** 0.5


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_no_weight_is_further_than_its_block_s_grid_allows(format):
    weight = normal() * np.geomspace(1e-25, 1e25, 24, dtype=np.float32)[:, None]
    made = quantize_blocks(weight, format)
    assert made.scales.shape == made.zero_points.shape == (24, -(-104 // format.block_size))
    assert made.codes.dtype == (np.int8 if format.symmetric else np.uint8)
    if format.symmetric:
        assert not made.zero_points.any()
    got = made.dequantize()
    for row in range(24):
        for start in range(0, 104, format.block_size):
            block = weight[row, start : start + format.block_size]
            if format.symmetric:
                step = np.abs(block).max() / (2 ** (format.bits - 1) - 1)
            else:
                step = (max(block.max(), 0) - min(block.min(), 0)) / (2**format.bits - 1)
            error = np.square((got[row, start : start + format.block_size] - block) / step).sum()
            assert error <= len(block) * 0.25 * 1.0001


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_stored_as_onnx_stores_it(format):
    made = quantize_blocks(normal(), format)
    for numbers in (made.codes, made.zero_points):
        stored = pack(numbers, format.bits)
        tensor = onnx.helper.make_tensor(
            "t", TYPES[format.bits, format.symmetric], numbers.shape, stored.tobytes(), raw=True
        )
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(int), numbers.astype(int))
        np.testing.assert_array_equal(unpack(stored, numbers.shape, format.bits, signed=format.symmetric), numbers)


@pytest.mark.parametrize(("symmetric", "gain"), [(True, 0.12), (False, 0.01)])
@pytest.mark.parametrize("block_size", [32, 128])
def test_searching_lowers_the_error_of_4_bits(block_size, symmetric, gain, monkeypatch):
    weight, format = normal(64, 1024), WeightFormat(4, block_size, symmetric)
    searched = relative_error(weight, quantize_blocks(weight, format).dequantize())
    monkeypatch.setattr(quantize, "_SHRINK", {(4, symmetric): (1.0,)})
    spanning = relative_error(weight, quantize_blocks(weight, format).dequantize())
    assert searched < (1 - gain) * spanning
    along_inputs = normal(1024, 64)  # as many blocks, each of one output
    assert searched < relative_error(along_inputs, quantize_matmul_nbits(along_inputs, format).dequantize())


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_zeros_stay_zeros(format):
    weight = normal()
    weight[:, ::3] = 0
    weight[5] = 0
    got = quantize_blocks(weight, format).dequantize()
    assert not got[:, ::3].any()
    assert not got[5].any()
    assert np.isfinite(got).all()


def test_rows_do_not_depend_on_each_other(monkeypatch):
    weight, format = normal(), WeightFormat(4, 32)
    whole = quantize_blocks(weight, format)
    monkeypatch.setattr(quantize, "_CHUNK", 300)
    np.testing.assert_array_equal(quantize_blocks(weight, format).codes, whole.codes)
    np.testing.assert_array_equal(quantize_blocks(weight[7:9], format).codes, whole.codes[7:9])
    assert squared_norm(weight) == pytest.approx(np.square(weight.astype(np.float64)).sum(), rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    weight = normal()
    weight[3, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_blocks(weight, WeightFormat(4))
