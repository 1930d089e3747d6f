"""A float32 constant that is made from a torch tensor while it is written, a few rows at a time."""

from typing import IO

import onnx_ir
import torch
from onnx_ir.tensor_adapters import TorchTensor

_ELEMENTS = 1 << 20  # widened at a time


class StreamedTensor(onnx_ir.LazyTensor):
    """The numbers of `source`, of any floating dtype, as float32.

    Weights that are mapped from a file, and transposed ones, are never in memory whole.
    """

    def __init__(self, source: torch.Tensor, name: str) -> None:
        super().__init__(
            lambda: TorchTensor(source.float(), name=name),
            dtype=onnx_ir.DataType.FLOAT,
            shape=onnx_ir.Shape(source.shape),
            name=name,
        )
        self.source = source.detach()

    def tofile(self, file: IO[bytes]) -> None:
        """Write the bytes that `tobytes` returns."""
        for rows in self.source.split(max(1, _ELEMENTS // self.source[0].numel())):
            file.write(rows.float().contiguous().numpy().data)
