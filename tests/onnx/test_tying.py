"""Graphs of models whose configuration says of output layer and embedding what their parameters are not."""

import pytest
import torch

from nm_export.onnx.base_graph import build_base_graph, check_base_graph
from nm_export.onnx.generic_graph import build_generic_graph
from tests.onnx.tiny import dense


def part(model):
    """Give a model that says that it is tied an output layer of its own."""
    assert model.config.tie_word_embeddings
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


def join(model):
    """Tie a model that says that it is not."""
    assert not model.config.tie_word_embeddings
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


@pytest.mark.parametrize("change", [part, join])
@pytest.mark.parametrize("generic", [False, True])
def test_graphs_compute_with_the_weights_that_the_model_has(change, generic, tokenizer_dir, tmp_path):
    if generic:
        pytest.importorskip("onnxscript")
    model = change(dense("llama" if change is part else "qwen2"))
    graph = build_generic_graph(model, tmp_path) if generic else build_base_graph(model, tokenizer_dir, tmp_path)
    assert check_base_graph(graph, model) < 1e-5
    assert graph.tied == (("lm_head", "model.embed_tokens") if change is join else None)
