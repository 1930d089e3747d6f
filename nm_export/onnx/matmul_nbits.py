"""The weights of `MatMulNBits`, ONNX Runtime's own product: blocks of neighbouring inputs share a scale.

The builder of onnxruntime-genai quantizes with ONNX Runtime's own code, which is called here for one weight at a time.
"""

from dataclasses import dataclass

import numpy as np

from nm_export.onnx.extras import require
from nm_export.onnx.quantize import WeightFormat, unpack

MATMUL_NBITS = "MatMulNBits"
"""Name of ONNX Runtime's operator."""
RUNTIME_DOMAIN = "com.microsoft"
"""Domain of ONNX Runtime's operators."""
ACCURACY_LEVEL = 4
"""The builder's choice for CPUs: the input, too, is rounded to 8 bits by blocks."""


@dataclass(frozen=True)
class MatMulNBitsWeight:
    """The constants of one `MatMulNBits`, uint8 as ONNX Runtime stores them.

    Attributes:
        packed: `[O, ceil(K / block_size), block_size * bits / 8]`.
        scales: float32 `[O, ceil(K / block_size)]`, of either sign.
        zero_points: `[O, ceil(ceil(K / block_size) * bits / 8)]`; None if the weight is symmetric.
        inputs: K.
        format: what they are.
    """

    packed: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    inputs: int
    format: WeightFormat

    def dequantize(self) -> np.ndarray:
        """The weight that they stand for, float32 `[K, O]`."""
        bits, size = self.format.bits, self.format.block_size
        O, blocks, _ = self.packed.shape  # noqa: E741
        codes = unpack(self.packed.reshape(-1), (O, blocks, size), bits)
        zeros: np.ndarray | np.uint8 = np.uint8(2 ** (bits - 1))
        if self.zero_points is not None:
            row = self.zero_points.shape[1] * 8 // bits
            zeros = unpack(self.zero_points.reshape(-1), (O, row), bits)[:, :blocks, None]
        weight = (codes.astype(np.float32) - zeros) * self.scales[:, :, None]
        return np.ascontiguousarray(weight.reshape(O, -1)[:, : self.inputs].T)


def quantize_matmul_nbits(weight: np.ndarray, format: WeightFormat) -> MatMulNBitsWeight:
    """Quantize a weight, float32 `[K, O]`, as ONNX Runtime does."""
    require("onnxruntime", "onnx")
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    settings = DefaultWeightOnlyQuantConfig(
        bits=format.bits, block_size=format.block_size, is_symmetric=format.symmetric, accuracy_level=ACCURACY_LEVEL
    )
    packed, scales, zeros = DefaultWeightOnlyQuantizer(settings).qbits_block_quant(np.asarray(weight))
    return MatMulNBitsWeight(packed, scales, None if format.symmetric else zeros, weight.shape[0], format)
