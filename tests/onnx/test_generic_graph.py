"""Architectures without a graph builder: the same proof, the same class, one graph, one copy of the weights."""

import onnx
import pytest
import torch

from nm_export.errors import UserError
from nm_export.onnx import genai_model
from nm_export.onnx.traced_model import TracedModel
from nm_export.verification import verify
from tests.onnx.test_modeling_ort import (
    LEFT,
    LONG,
    MODES,
    SHORT,
    assert_generates_like_torch_whatever_the_rows,
    load,
)
from tests.onnx.tiny import dense, sparse, tokens

# a packed linear with everything that a linear can have; a tied embedding in 4 bits, its scores from a dynamic shift
EXPORTS = {"gpt_neox": ("all, learned", "fp32"), "stablelm": ("dynamic_mean", "int4")}


@pytest.fixture(params=EXPORTS)
def published(request, publish):
    method, precision = EXPORTS[request.param]
    return publish(request.param, method, precision=precision)


@pytest.fixture
def neox(publish):
    return publish("gpt_neox", EXPORTS["gpt_neox"][0])


def test_every_form_agrees(published):
    assert published.result.exporter == "generic"
    assert published.result.dense_difference < 1e-5
    report = verify(published.folder, published.model, tokens(samples=6, length=32))
    for backend in ("reloaded", "onnx_kernel", "onnx_function"):
        assert report.modules[backend].modules == len(published.model.nm_modules())
        assert report.modules[backend].kept_channels_equal
    assert set(report.end_to_end) == {"onnx_kernel", "onnx_function"}
    operators = {node.op_type for node in onnx.load(published.result.model_path, load_external_data=False).graph.node}
    tied = published.model.get_output_embeddings().weight is published.model.get_input_embeddings().weight
    assert ("GatherBlockQuantized" in operators) == tied  # stored once, with the output layer
    assert bool(report.against_dense) == (published.result.quantization is not None)  # the twin has the same exporter


def test_weights_are_stored_once_and_nothing_tells_of_this_machine(neox):
    folder = neox.folder / "onnx"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 22, "ai.nm_export": 1}
    weights = 4 * sum(p.numel() for p in neox.model.parameters())
    sparsity = 4 * sum(buffer.numel() for name, buffer in neox.model.named_buffers() if ".nm_" in name)
    pages = 4096 * len(graph.graph.initializer)
    assert weights < (folder / "model.onnx.data").stat().st_size < weights + sparsity + pages
    assert b".py" not in (folder / "model.onnx").read_bytes()


@pytest.mark.parametrize("mode", MODES)
def test_generates_what_torch_generates_and_rows_do_not_matter(mode, neox):
    assert_generates_like_torch_whatever_the_rows(neox, mode)


def test_padding_on_either_side_and_several_tokens_on_a_cache(neox):
    model = load(neox)
    alone = model(torch.cat([SHORT, LONG], dim=1)).logits[0, 3:]
    right_ids = torch.cat([LONG, torch.tensor([[15, 16, 17, 0, 0]])])
    for ids in (LEFT, right_ids):
        mask = (ids > 0).long()
        cache = model(ids, attention_mask=mask).past_key_values
        mask = torch.cat([mask, torch.ones(2, 5, dtype=torch.long)], dim=1)
        more = model(LONG.expand(2, -1), attention_mask=mask, past_key_values=cache).logits[1]
        torch.testing.assert_close(more, alone, rtol=1e-5, atol=1e-5)


def test_onnxruntime_genai_is_refused_in_a_sentence(neox):
    with pytest.raises(UserError, match=r"does not run the graph .* NMSparseORTModelForCausalLM does"):
        genai_model(neox.folder)


def test_tracing_leaves_the_model_alone_and_computes_in_float32():
    model = sparse("stablelm", pattern="2:4").bfloat16()
    before = {name: id(module) for name, module in model.named_modules()}
    traced = TracedModel(model)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in traced.parameters()} == {torch.float32}
    assert traced.tied == ("lm_head", "model.embed_tokens")
    assert set(traced.linears) == {n for n, m in dense("stablelm").named_modules() if isinstance(m, torch.nn.Linear)}
