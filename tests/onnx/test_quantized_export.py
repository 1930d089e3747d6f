"""Exports with weights of 8 and 4 bits compute what torch computes with the weights that the file holds."""

import copy

import numpy as np
import pytest
import torch

from nm_export.onnx import export_onnx, run_probe
from nm_export.onnx.quantize import WeightFormat
from nm_export.onnx.stored_weights import stored_weights
from tests.onnx.tiny import METHODS, sparse

FORMATS = [WeightFormat(4), WeightFormat(4, 16, symmetric=False), WeightFormat(8, 64), WeightFormat(8, 128, False)]


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
    return model


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("method", ["weight_norm", "all, dynamic", "all, learned", "residual, decode"])
@pytest.mark.parametrize("name", ["biases everywhere", "phi3"])
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
