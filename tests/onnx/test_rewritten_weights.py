"""The weights of an export are those that the model holds now: not a checkpoint's, not the base model's."""

import numpy as np
import onnxruntime_genai
import pytest
import torch
from torch import nn

from nm_export.errors import NMExportError
from nm_export.modeling.modeling_nm_sparse import keep_mask
from nm_export.onnx import (
    NMSparseORTModelForCausalLM,
    create_session,
    export_onnx,
    genai_model,
    run_probe,
)
from nm_export.onnx.base_graph import build_base_graph, check_base_graph
from tests.onnx.graphs import exported, largest_difference, load
from tests.onnx.test_genai import generated
from tests.onnx.tiny import METHODS, WEIGHTS, dense, sparse, tokens

NEUTRAL = {
    "shift": "none",
    "score": "magnitude",
    "variance_correction": False,
    "output_scale": False,
    "output_bias": "none",
    "residual_rank": 0,
}


@torch.no_grad()
def rewrite(model):
    """Change every kind of tensor."""
    for parameter in model.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    for module in model.nm_modules().values():
        module.update_offset()


@torch.no_grad()
def prune_weights(model):
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.weight *= keep_mask(module.weight.abs(), 2, 4)


@pytest.mark.parametrize("kernel", ["topk", "fused"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "gemma3"])
def test_rewritten_weights_are_exported(architecture, kernel, tokenizer_dir, tmp_path):
    model = sparse(architecture, **METHODS["all, learned"])
    dense(architecture).save_pretrained(tmp_path / "base")
    for config in (model.config, model.config.base_config):
        config._name_or_path = str(tmp_path / "base")  # the checkpoint that the model came from
    rewrite(model)
    (tmp_path / "made").mkdir()
    path = exported(model, tokenizer_dir, tmp_path / "made", kernel=kernel)
    assert largest_difference(path, model) < 1e-5


def test_the_dense_graph_is_compared_with_the_same_weights(tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4")
    rewrite(model)
    graph = build_base_graph(model, tokenizer_dir, tmp_path)
    assert check_base_graph(graph, model) < 1e-5
    with pytest.raises(NMExportError, match="differs from the torch model"):
        check_base_graph(graph, dense())


@pytest.fixture(scope="module")
def weight_pruned(tmp_path_factory, tokenizer_dir):
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("weights")
    model = sparse("qwen2", **WEIGHTS)
    prune_weights(model)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(tokenizer_dir).save_pretrained(folder)
    return model, folder, export_onnx(model, folder, tokenizer_dir=folder)


def test_pruned_weights_give_a_graph_of_standard_operators(weight_pruned):
    model, _, result = weight_pruned
    assert (result.num_operators, result.num_modules) == (0, 0)
    graph, _, constants = load(result.model_path)
    assert not graph.functions
    assert "ai.nm_export" not in {opset.domain for opset in graph.opset_import}
    stored = constants["model.layers.0.mlp.down_proj.MatMul.weight"]
    assert (stored.reshape(-1, 4, 64) != 0).sum(1).max() == 2
    assert largest_difference(result.model_path, model) < 1e-5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("library", [None, True, False])
def test_such_a_graph_needs_no_library(library, weight_pruned, no_library):
    model, folder, result = weight_pruned
    create_session(result.model_path, library=library)
    runtime = NMSparseORTModelForCausalLM.from_pretrained(folder, library=library)
    ids = tokens()
    with torch.no_grad():
        torch.testing.assert_close(runtime(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    assert runtime.generate(ids[:1], max_new_tokens=4, do_sample=False).shape == (1, 16)
    assert len(generated(genai_model(folder, library=library))) == 20
    assert run_probe(result.model_path, {}, library=library) == {}


def test_such_a_graph_opens_with_the_library_too(weight_pruned):
    _, folder, result = weight_pruned
    create_session(result.model_path, library=True)
    assert len(generated(genai_model(folder, library=True))) == 20
    assert len(generated(onnxruntime_genai.Model(str(folder / "onnx")))) == 20


def test_a_probe_of_such_a_graph_finds_nothing(weight_pruned):
    with pytest.raises(NMExportError, match="does not prune"):
        run_probe(weight_pruned[2].model_path, {"model.layers.0.mlp.down_proj": np.zeros((1, 80), np.float32)})


def test_pruned_weights_beside_pruned_inputs(tokenizer_dir, tmp_path):
    model = sparse("qwen2", **METHODS["all, dynamic"], overrides=[{"modules": "*.mlp.*", **WEIGHTS} | NEUTRAL])
    prune_weights(model)
    for module in model.nm_modules().values():
        module.update_offset()
    path = exported(model, tokenizer_dir, tmp_path, kernel="auto")
    graph, _, _ = load(path)
    assert {node.name.split("/")[3] for node in graph.graph.node if node.op_type == "NMSparseMatMul"} == {"attn"}
    assert largest_difference(path, model) < 1e-5
