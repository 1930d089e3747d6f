"""A tied embedding looks tokens up in the codes of the output layer."""

import numpy as np
import onnx
import pytest
from transformers import LlamaConfig

from nm_export.onnx.dense_graph import build_dense_graph
from nm_export.onnx.session import create_session, empty_cache
from nm_export.onnx.stored_weights import stored_weights
from tests.onnx.tiny import SIZES, dense


@pytest.mark.parametrize(("hidden", "heads"), [(64, 4), (48, 3)])
def test_rows_are_those_of_the_output_layer(hidden, heads, tokenizer_dir, tmp_path):
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": 1}
    model = dense(config=LlamaConfig(**{**SIZES, **sizes}, tie_word_embeddings=True))
    path = build_dense_graph(model, tokenizer_dir, tmp_path, precision="int4").path
    weights = {stored.module: stored.weight for stored in stored_weights(path)}
    np.testing.assert_array_equal(weights["model.embed_tokens"], weights["lm_head"])

    graph = onnx.load(path, load_external_data=False)
    assert not any(t.name == "model.embed_tokens.weight" for t in graph.graph.initializer)
    (first,) = (n for n in graph.graph.node if n.name == "/model/layers.0/input_layernorm/LayerNorm")
    graph.graph.output.append(onnx.helper.make_tensor_value_info(first.input[0], onnx.TensorProto.FLOAT, None))
    onnx.save(graph, path)
    session = create_session(path)
    ids = np.arange(1, 13)[None]
    cache = empty_cache(session, 1)
    found = session.run([first.input[0]], {"input_ids": ids, "attention_mask": np.ones_like(ids), **cache})[0]
    np.testing.assert_allclose(found[0], weights["lm_head"].T[1:13], atol=1e-6)
