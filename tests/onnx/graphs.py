"""Graphs of tiny models, and how far they are from torch."""

import numpy as np
import onnx
import torch

from nm_export.onnx.base_graph import build_base_graph
from nm_export.onnx.checking import check_graph
from nm_export.onnx.insert import insert_operators
from nm_export.onnx.pruned_inputs import pruned_inputs
from nm_export.onnx.session import create_session, empty_cache
from tests.onnx.tiny import tokens


def exported(model, tokenizer_dir, folder, *, kernel="topk"):
    graph = build_base_graph(model, tokenizer_dir, folder)
    insert_operators(graph, pruned_inputs(model), {"recipe_sha256": "abc"}, kernel=kernel)
    check_graph(graph.path)
    return graph.path


def load(path):
    """The graph, its nodes by name, its constants by name."""
    model = onnx.load(path)
    nodes = {node.name: node for node in model.graph.node}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return model, nodes, constants


def largest_difference(path, model, **session):
    """Between graph and torch, over a prompt and one more token, as a share of the largest logit."""
    opened = create_session(path, library=False, **session)
    ids, cache = tokens(), empty_cache(opened, 2)
    with torch.no_grad():
        prompt = model(ids, use_cache=True)
        step = model(ids[:, :1], past_key_values=prompt.past_key_values)
    feed = {"input_ids": ids.numpy(), "attention_mask": np.ones((2, 12), np.int64)}
    logits, *present = opened.run(None, feed | cache)
    feed = {"input_ids": ids[:, :1].numpy(), "attention_mask": np.ones((2, 13), np.int64)}
    more, *_ = opened.run(None, feed | dict(zip(cache, present, strict=True)))
    expected = torch.cat([prompt.logits, step.logits], 1).numpy()
    return np.abs(np.concatenate([logits, more], 1) - expected).max() / np.abs(expected).max()
