"""A product of the runtime's own with shift and biases behind it."""

import numpy as np

from tests.onnx.graphs import exported, largest_difference, load
from tests.onnx.tiny import METHODS, sparse


def test_offsets_merge_with_biases(tokenizer_dir, tmp_path):
    model = sparse("qwen2", pattern="2:4", shift="static_channel")
    _, nodes, constants = load(exported(model, tokenizer_dir, tmp_path))
    linear = model.nm_modules()["model.layers.0.self_attn.q_proj"]
    merged = constants[nodes["/model/layers.0/attn/q_proj/Add"].input[1]]
    np.testing.assert_allclose(merged, (linear.bias + linear.nm_offset).detach().numpy(), rtol=1e-6)
    assert "/model/layers.0/attn/q_proj/bias/Add" not in nodes
    assert "model.layers.0.attn.q_proj.Add.bias" not in constants
    down = model.nm_modules()["model.layers.0.mlp.down_proj"]
    added = constants[nodes["/model/layers.0/mlp/down_proj/bias/Add"].input[1]]
    np.testing.assert_array_equal(added, down.nm_offset.numpy())


def test_a_dynamic_shift_is_given_back_before_the_bias(tokenizer_dir, tmp_path):
    model = sparse("qwen2", **METHODS["all, dynamic"])
    _, nodes, constants = load(exported(model, tokenizer_dir, tmp_path))
    linear = model.nm_modules()["model.layers.0.self_attn.q_proj"]
    path = "/model/layers.0/attn/q_proj"
    assert nodes[f"{path}/offset/Add"].input[0] == nodes[f"{path}/MatMul"].output[0]
    assert nodes[f"{path}/Add"].input[0] == nodes[f"{path}/offset/Add"].output[0]
    assert nodes[f"{path}/offset/Mul"].input[0] == nodes["/model/layers.0/attn/NMTopK"].output[1]
    bias = constants[nodes[f"{path}/Add"].input[1]]
    np.testing.assert_allclose(bias, (linear.bias + linear.nm_bias).detach().numpy(), rtol=1e-6)


def test_what_needs_no_constant_gets_no_node(tokenizer_dir, tmp_path):
    plain, _, _ = load(exported(sparse(pattern="2:4"), tokenizer_dir, tmp_path))
    assert not any(part in node.name for node in plain.graph.node for part in ("/offset/", "/bias/", "/residual"))


def test_a_pruned_head_keeps_the_name_of_the_output(tokenizer_dir, tmp_path):
    for method in ("static_scalar", "all, learned", "all, dynamic"):
        model = with_pruned_head(sparse("mistral", **METHODS[method]))
        for kernel in ("topk", "fused"):
            folder = tmp_path / method / kernel
            folder.mkdir(parents=True)
            path = exported(model, tokenizer_dir, folder, kernel=kernel)
            assert load(path)[0].graph.output[0].name == "logits"
            assert largest_difference(path, model) < 1e-5


def with_pruned_head(model):
    """Prune the head too, which recipes cannot ask for."""
    down = model.nm_modules()["model.layers.0.mlp.down_proj"]
    scheme = {**model.config.sparsity["schemes"][0], "modules": ["lm_head"]}
    model.config.sparsity["schemes"].append(scheme)
    model.lm_head = type(down)(model.lm_head, scheme, "lm_head")
    for name, buffer in model.lm_head.named_buffers():
        if name != "nm_score":
            buffer.uniform_(0.1, 0.9)
    model.lm_head.update_offset()
    return model
