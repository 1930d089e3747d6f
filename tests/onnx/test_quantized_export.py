"""Exports with weights of 8 and 4 bits compute what torch computes with the weights that the file holds."""

import copy

import numpy as np
import onnx
import pytest
import torch

from nm_export.onnx import NMSparseORTModelForCausalLM, export_onnx, genai_model, run_probe
from nm_export.onnx.dense_graph import build_dense_twin
from nm_export.onnx.quantize import WeightFormat
from nm_export.onnx.stored_weights import stored_format, stored_weights
from tests.kernels.sessions import instruction_set
from tests.onnx.test_genai import generated
from tests.onnx.tiny import METHODS, sparse, tokens


def options(format):
    return {"precision": format.name, "block_size": format.block_size, "symmetric": format.symmetric}


def with_stored_weights(model, path):
    """A copy of the model that holds the weights of the graph."""
    model = copy.deepcopy(model)
    for stored in stored_weights(path):
        module = model.get_submodule(stored.module)
        weight = torch.from_numpy(stored.weight.T.copy())
        scale = getattr(module, "nm_scale", None)
        if scale is not None:
            weight /= scale[stored.start : stored.stop, None]
        new = module.weight.detach().clone()
        new[stored.start : stored.stop] = weight
        module.weight = torch.nn.Parameter(new)
        if stored.module in model.nm_modules():
            module.keep_offset()  # the graph's offsets are those of the float weights
    return model


@pytest.mark.parametrize(
    ("name", "method", "format"),
    [
        ("biases everywhere", "weight_norm", WeightFormat(4)),
        ("biases everywhere", "all, dynamic", WeightFormat(4, 16, symmetric=False)),
        ("qwen3", "residual, decode", WeightFormat(8, 64)),
        ("phi3", "all, learned", WeightFormat(4, 64)),
        ("phi3", "all, dynamic", WeightFormat(8, 128, symmetric=False)),
    ],
    ids=str,
)
def test_modules_compute_what_torch_computes_with_those_weights(name, method, format, tokenizer_dir, tmp_path):
    model = sparse(name, **METHODS[method])
    path = export_onnx(model, tmp_path, tokenizer_dir=tokenizer_dir, **options(format)).model_path
    reference = with_stored_weights(model, path)
    modules = reference.nm_modules()
    generator = torch.Generator().manual_seed(0)
    for tokens_ in (5, 1):
        inputs, shared = {}, {}
        for module, linear in modules.items():
            group = next((g for g in model.config.sparsity["input_groups"] if module in g), [module])
            shared.setdefault(group[0], torch.randn(1, tokens_, linear.in_features, generator=generator))
            inputs[module] = shared[group[0]]
        probed = run_probe(path, {name: x.numpy() for name, x in inputs.items()}, library=False)
        assert set(probed) == set(modules)
        for module, (kept, y) in probed.items():
            with torch.no_grad():
                expected = modules[module](inputs[module])
                values, _ = modules[module].prune(inputs[module])
            np.testing.assert_array_equal(kept, values.numpy() != 0)
            np.testing.assert_allclose(y, expected.numpy(), atol=1e-5 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_dir):
    """A model without tied embeddings whose linears are all pruned, with weights of 4 bits."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("quantized")
    model = sparse("qwen2", **METHODS["all, dynamic"])
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(tokenizer_dir).save_pretrained(folder)
    result = export_onnx(model, folder, tokenizer_dir=folder, precision="int4")
    return model, folder, result


@pytest.mark.parametrize("library", [True, False])
def test_every_runtime_opens_it(folder, library):
    model, path, _ = folder
    reference = with_stored_weights(model, path / "onnx" / "model.onnx")
    with instruction_set("portable"):  # 24 tokens are not rounded there, so that both keep the same channels
        float32 = NMSparseORTModelForCausalLM.from_pretrained(path, library=library)
    ids = tokens()
    with torch.no_grad():
        expected = reference(ids).logits
    # the output layer rounds its inputs to 8 bits
    torch.testing.assert_close(float32(ids).logits, expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    runtime = NMSparseORTModelForCausalLM.from_pretrained(path, library=library)
    assert runtime.generate(ids[:1], max_new_tokens=4, do_sample=False).shape == (1, 16)
    assert len(generated(genai_model(path, library=library))) == 20


def test_rounded_prompts_stay_close(folder):
    """Where the processor rounds them, some near-ties are decided otherwise."""
    model, path, _ = folder
    with torch.no_grad():
        expected = with_stored_weights(model, path / "onnx" / "model.onnx")(tokens()).logits
    logits = NMSparseORTModelForCausalLM.from_pretrained(path).forward(tokens()).logits
    assert (logits - expected).norm() < 0.2 * expected.norm()


def test_the_result_compares_with_matmul_nbits(folder):
    model, _, result = folder
    report = result.quantization
    assert report.modules.keys() == {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert report.modules["lm_head"].matmul_nbits is None
    errors = [m for n, m in report.modules.items() if n != "lm_head"]
    assert all(0.05 < m.error < 0.12 and 0.05 < m.matmul_nbits < 0.12 for m in errors)
    assert report.mean().error == pytest.approx(np.mean([m.error for m in errors]))


def test_the_dense_twin_has_the_same_precision(folder, tmp_path):
    model, path, _ = folder
    twin = build_dense_twin(model, path, tmp_path / "twin")
    graph = onnx.load(twin / "onnx" / "model.onnx", load_external_data=False)
    assert stored_format(twin / "onnx" / "model.onnx") == WeightFormat(4) == stored_format(path / "onnx" / "model.onnx")
    assert sum(node.op_type == "MatMulNBits" for node in graph.graph.node) == 15
    assert not graph.functions
    ids = tokens()
    with torch.no_grad(), model.dense():
        expected = model(ids).logits
    got = NMSparseORTModelForCausalLM.from_pretrained(twin)(ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=0.4 * float(expected.abs().max()))
