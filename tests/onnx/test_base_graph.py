"""The dense graph: right for every architecture, built without touching the model, refused where it would be wrong."""

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from nm_export.errors import NMExportError, UserError
from nm_export.onnx.base_graph import build_base_graph, check_base_graph
from nm_export.onnx.exporters import choose_graph
from tests.onnx.tiny import CONFIGS, SIZES, dense, sparse


@pytest.mark.parametrize("name", CONFIGS)
def test_matches_torch(name, tokenizer_dir, tmp_path):
    model = dense(name)
    graph = build_base_graph(model, tokenizer_dir, tmp_path)
    assert check_base_graph(graph, model) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_half_precision_models_give_float32_graphs_of_the_same_weights(name, tokenizer_dir, tmp_path):
    model = dense(name).to(torch.bfloat16)
    graph = build_base_graph(model, tokenizer_dir, tmp_path)
    check_base_graph(graph, model)
    wide = dense(name)
    wide.load_state_dict(model.state_dict())
    assert check_base_graph(graph, wide, tolerance=1) < 5e-3  # rotary angles were rounded with the model


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_sparse_model_gives_the_dense_graph_and_is_left_alone(architecture, tokenizer_dir, tmp_path):
    model = sparse(architecture)
    before = {name: (id(module), set(vars(module))) for name, module in model.named_modules()}
    graph = build_base_graph(model, tokenizer_dir, tmp_path)
    check_base_graph(graph, model)
    assert {name: (id(module), set(vars(module))) for name, module in model.named_modules()} == before
    assert all(module.enabled for module in model.nm_modules().values())


@pytest.mark.parametrize("architecture", ["qwen2", "phi3"])
def test_products_cover_every_linear_with_its_own_rows(architecture, tokenizer_dir, tmp_path):
    model = dense(architecture)
    graph = build_base_graph(model, tokenizer_dir, tmp_path)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(graph.path).graph.initializer}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(graph.products) == set(linears)
    for name, products in graph.products.items():
        assert [p.start for p in products[1:]] == [p.stop for p in products[:-1]]
        assert (products[0].start, products[-1].stop) == (0, linears[name].out_features)
        for product in products:
            stored = weights[f"{product.node[1:].replace('/', '.')}.weight"]
            np.testing.assert_array_equal(stored.T, linears[name].weight.detach()[product.start : product.stop])


def test_weights_start_on_pages_and_names_are_relative(tokenizer_dir, tmp_path):
    graph = build_base_graph(dense(), tokenizer_dir, tmp_path)
    skeleton = onnx.load(graph.path, load_external_data=False)
    for tensor in skeleton.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        assert where["location"] == "model.onnx.data"
        assert int(where["length"]) <= 4096 or int(where["offset"]) % 4096 == 0


def test_a_wrong_graph_is_reported_before_anything_is_inserted(tokenizer_dir, tmp_path):
    model = dense()
    graph = build_base_graph(model, tokenizer_dir, tmp_path)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 0.5
    with pytest.raises(NMExportError, match=r"LlamaForCausalLM differs from the torch model by \d"):
        check_base_graph(graph, model)


def test_unknown_architecture_is_named(tokenizer_dir, tmp_path):
    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=96))
    with pytest.raises(UserError, match="graph builder of onnxruntime-genai does not know GPT2LMHeadModel"):
        build_base_graph(model, tokenizer_dir, tmp_path)


def test_another_opset_is_refused(tokenizer_dir, tmp_path):
    with pytest.raises(UserError, match=r"onnx.opset 17 is not supported: .* written in opset 22"):
        build_base_graph(dense(), tokenizer_dir, tmp_path, opset=17)


def test_rope_that_depends_on_the_length_is_refused(tokenizer_dir, tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = dense(config=LlamaConfig(**SIZES, rope_parameters=rope))
    with pytest.raises(UserError, match="RoPE type dynamic"):
        build_base_graph(model, tokenizer_dir, tmp_path)


@pytest.mark.parametrize("exporter", ["auto", "builder", "generic"])
@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 64,
            }
        },
        {"use_dynamic_ntk": True},
        {"use_logn_attn": True},
    ],
)
def test_positions_that_depend_on_the_length_are_refused_by_every_exporter(changes, exporter, tokenizer_dir, tmp_path):
    model = dense(config=LlamaConfig(**SIZES, **changes))
    with pytest.raises(UserError, match=r"cannot be exported to ONNX: its angles depend on the length .*--skip-onnx"):
        choose_graph(model, tokenizer_dir, tmp_path, exporter=exporter)
    assert list(tmp_path.iterdir()) == []


def test_a_window_longer_than_the_prompt_is_compared(tokenizer_dir, tmp_path):
    narrow = dense(config=MistralConfig(**SIZES, sliding_window=40))
    graph = build_base_graph(narrow, tokenizer_dir, tmp_path)
    assert check_base_graph(graph, narrow) < 1e-5
    wide = dense(config=MistralConfig(**SIZES, sliding_window=None))
    with pytest.raises(NMExportError, match="behind 127 cached tokens"):
        check_base_graph(graph, wide)
    narrower = dense(config=MistralConfig(**SIZES, sliding_window=39))
    with pytest.raises(NMExportError, match="behind 55 cached tokens"):
        check_base_graph(graph, narrower)


def test_angles_beyond_the_first_positions_are_compared(tokenizer_dir, tmp_path):
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    model = dense(config=LlamaConfig(**SIZES, rope_parameters=yarn))
    graph = build_base_graph(model, tokenizer_dir, tmp_path)
    assert check_base_graph(graph, model) < 1e-5
    stretch = model.model.rotary_emb.forward

    def longer(x, position_ids):
        return stretch(x, torch.where(position_ids > 64, position_ids + 9, position_ids))

    model.model.rotary_emb.forward = longer
    with pytest.raises(NMExportError, match="behind 80 cached tokens"):
        check_base_graph(graph, model)


def test_heads_that_attention_does_not_take_are_refused(tokenizer_dir, tmp_path):
    model = dense(config=LlamaConfig(**{**SIZES, "num_attention_heads": 8}))
    with pytest.raises(UserError, match="heads of 8 channels"):
        build_base_graph(model, tokenizer_dir, tmp_path)


def test_nothing_is_printed(tokenizer_dir, tmp_path, capfd):
    build_base_graph(dense(), tokenizer_dir, tmp_path)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
