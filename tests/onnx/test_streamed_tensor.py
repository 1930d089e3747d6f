"""Constants that are widened while they are written."""

import io

import numpy as np
import pytest
import torch

from nm_export.onnx import streamed_tensor
from nm_export.onnx.streamed_tensor import StreamedTensor


@pytest.mark.parametrize("elements", [1, 100, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_file_holds_the_numbers_as_float32(elements, dtype, transposed, monkeypatch):
    monkeypatch.setattr(streamed_tensor, "_ELEMENTS", elements)
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    source = weight.T if transposed else weight
    tensor, file = StreamedTensor(source, "weight"), io.BytesIO()
    tensor.tofile(file)
    expected = source.float().numpy()
    assert file.getvalue() == expected.tobytes() == tensor.tobytes()
    np.testing.assert_array_equal(tensor.numpy(), expected)
    assert list(tensor.shape) == list(source.shape)
    assert tensor.nbytes == expected.nbytes


def test_no_more_than_some_rows_are_widened_at_once(monkeypatch):
    monkeypatch.setattr(streamed_tensor, "_ELEMENTS", 64)
    written = []
    file = type("File", (), {"write": lambda self, data: written.append(memoryview(data).nbytes)})()
    StreamedTensor(torch.zeros(40, 32, dtype=torch.bfloat16).T, "weight").tofile(file)
    assert sum(written) == 40 * 32 * 4
    assert max(written) <= 64 * 4
