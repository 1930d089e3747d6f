"""Probes: what a pruned linear of the graph keeps and returns, on any input."""

import numpy as np
import pytest
import torch

from nm_export.errors import NMExportError
from nm_export.onnx import run_probe
from tests.onnx.tiny import METHODS, tokens


def captured(model):
    """The input of every pruned linear in one call."""
    inputs = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].numpy().copy()}))
        for name, module in model.nm_modules().items()
    ]
    with torch.no_grad():
        model(tokens())
    for hook in hooks:
        hook.remove()
    return inputs


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["qwen2", "phi3"])
def test_every_module_keeps_what_torch_keeps(architecture, method, library, publish):
    published = publish(architecture, method)
    inputs = captured(published.model)
    answers = run_probe(published.result.model_path, inputs, library=library)
    assert answers.keys() == inputs.keys()
    for name, module in published.model.nm_modules().items():
        with torch.no_grad():
            values, _ = module.prune(torch.from_numpy(inputs[name]))
            expected = module(torch.from_numpy(inputs[name])).numpy()
        kept, y = answers[name]
        np.testing.assert_array_equal(kept, values.numpy() != 0)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


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
