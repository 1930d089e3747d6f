"""Probes: what a pruned linear of the graph keeps and returns, on any input."""

import numpy as np
import pytest

from nm_export.errors import NMExportError
from nm_export.onnx import run_probe
from nm_export.verification.modules import capture_inputs, check_modules, record_modules
from tests.onnx.tiny import METHODS, tokens


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("kernel", ["fused", "topk"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["qwen2", "phi3"])
def test_every_module_computes_what_torch_computes(architecture, method, kernel, library, publish):
    """As verification does it: a prompt, then its last token alone."""
    published = publish(architecture, method, kernel)
    inputs = capture_inputs(published.model, tokens(samples=1))
    calls = [
        run_probe(published.result.model_path, {n: x[:, start:].numpy() for n, x in inputs.items()}, library=library)
        for start in (0, -1)
    ]
    assert all(call.keys() == published.model.nm_modules().keys() for call in calls)
    actual = {name: tuple(np.concatenate([call[name][i] for call in calls], axis=1) for i in (0, 1)) for name in inputs}
    check_modules("ONNX Runtime", record_modules(published.model, inputs), actual, tolerance=1e-5)


def test_one_module_of_a_shared_input_answers_for_all(publish):
    published = publish("qwen2", "magnitude")
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    answers = run_probe(published.result.model_path, {"model.layers.1.mlp.up_proj": x}, library=False)
    assert set(answers) == {"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"}
    kept, y = answers["model.layers.1.mlp.up_proj"]
    assert kept.shape == (5, 64)
    assert y.shape == (5, 80)
    assert (kept.reshape(5, 4, 16).sum(-1) == 8).all()


def test_wrong_modules_are_named(publish):
    path = publish("qwen2", "magnitude").result.model_path
    x = np.zeros((1, 64), np.float32)
    with pytest.raises(NMExportError, match="does not prune lm_head"):
        run_probe(path, {"lm_head": x}, library=False)
    both = {"model.layers.1.mlp.up_proj": x, "model.layers.1.mlp.gate_proj": x + 1}
    with pytest.raises(NMExportError, match="gate_proj shares its input with another linear"):
        run_probe(path, both, library=False)
