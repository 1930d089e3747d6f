"""The stand-ins of linears in traced graphs."""

import pytest
import torch
from torch import nn

from nm_export.onnx.traced_model import _Product


@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8)], ids=str)
def test_a_bias_is_added_right_after_the_product(shape):
    """There the rewriting looks for it, and puts it into the operator; also where tokens come in one list."""
    product = _Product(nn.Linear(8, 4), 0).requires_grad_(False)
    graph = torch.export.export(nn.Sequential(product), (torch.randn(shape),)).graph
    operators = [node.target for node in graph.nodes if node.op == "call_function"]
    after = operators[operators.index(torch.ops.aten.matmul.default) + 1]
    assert after is torch.ops.aten.add.Tensor
    assert product(torch.randn(shape)).shape == (*shape[:-1], 4)
