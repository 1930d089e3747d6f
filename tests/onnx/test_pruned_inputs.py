"""What is read off a sparse model: groups, and constants with everything that can be folded folded."""

import numpy as np
import pytest

from nm_export.errors import NMExportError, UserError
from nm_export.onnx import export_onnx
from nm_export.onnx.pruned_inputs import pruned_inputs
from tests.onnx.tiny import METHODS, sparse


def test_a_group_that_disagrees_is_named():
    model = sparse(pattern="2:4", score="weight_norm")
    model.nm_modules()["model.layers.0.self_attn.k_proj"].nm_score[0] += 1
    with pytest.raises(NMExportError, match=r"layers\.0\.self_attn\.k_proj shares its input with .*q_proj"):
        pruned_inputs(model)


def test_a_score_of_the_whole_call_is_refused(tokenizer_dir, tmp_path):
    model = sparse(pattern="2:4", overrides=[{"modules": "*.1.mlp.down_proj", "score": "clact_noncausal"}])
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj .* clact_noncausal .*: clact, or .*--skip-onnx"):
        export_onnx(model, tmp_path, tokenizer_dir=tokenizer_dir)
    assert not list(tmp_path.iterdir())


def test_a_static_offset_is_scaled_and_part_of_the_bias():
    model = sparse(**METHODS["all, learned"])
    module = model.nm_modules()["model.layers.0.mlp.down_proj"]
    (linear,) = next(p.linears for p in pruned_inputs(model) if p.linears[0].name == "model.layers.0.mlp.down_proj")
    assert linear.offset is None
    np.testing.assert_allclose(linear.bias, module.nm_bias + module.nm_offset * module.nm_scale, rtol=1e-6)
    part = linear.rows(16, 48)
    np.testing.assert_array_equal(part.scale, module.nm_scale[16:48])
    np.testing.assert_array_equal(part.residual_out, module.nm_residual_out[16:48])
    np.testing.assert_array_equal(part.residual_in, module.nm_residual_in)


def test_a_dynamic_offset_is_scaled_and_stays_apart():
    model = sparse(**METHODS["all, dynamic"])
    module = model.nm_modules()["model.layers.0.mlp.down_proj"]
    (linear,) = next(p.linears for p in pruned_inputs(model) if p.linears[0].name == "model.layers.0.mlp.down_proj")
    np.testing.assert_allclose(linear.offset, module.nm_offset * module.nm_scale, rtol=1e-6)
    np.testing.assert_array_equal(linear.bias, module.nm_bias)


def test_pruned_weights_leave_no_pruned_input():
    assert pruned_inputs(sparse(pattern="2:4", prune="weights")) == []
    mixed = sparse(pattern="2:4", overrides=[{"modules": "*.mlp.*", "prune": "weights"}])
    names = [linear.name for pruned in pruned_inputs(mixed) for linear in pruned.linears]
    assert len(names) == 8
    assert all("self_attn" in name for name in names)
