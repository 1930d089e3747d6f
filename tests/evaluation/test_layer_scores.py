"""Retained energy and output error of each layer, against NumPy in float64."""

import numpy as np
import pytest
import torch

from nm_export.evaluation.layer_scores import score_layers
from nm_export.verification.modules import capture_inputs
from tests.tiny_models import sparse_model, token_ids


def largest_of(z, n, m):
    groups = np.abs(z).reshape(-1, z.shape[-1] // m, m)
    order = np.argsort(-groups, axis=-1, kind="stable")[..., :n]
    keep = np.zeros_like(groups, dtype=bool)
    np.put_along_axis(keep, order, True, axis=-1)
    return keep.reshape(z.shape)


def test_against_numpy():
    model = sparse_model(targets=["*.down_proj", "*.q_proj"], pattern="2:4", shift="static_scalar")
    for number, module in enumerate(model.nm_modules().values()):
        module.nm_shift.fill_(0.05 * (number + 1))
        module.update_offset()
    ids = token_ids(3, 12)
    scores = score_layers(model, ids)
    assert scores.tokens == 36
    assert len(scores.modules) == 2 * 7
    inputs = [capture_inputs(model, row.unsqueeze(0)) for row in ids]
    for name, module in model.nm_modules().items():
        x = np.concatenate([call[name][0].numpy() for call in inputs]).astype(np.float64)
        shift, weight = float(module.nm_shift), module.weight.detach().numpy().astype(np.float64)
        z = (x.astype(np.float32) - np.float32(shift)).astype(np.float64)
        kept = np.where(largest_of(z.astype(np.float32), 2, 4), z, 0)
        energy = (kept**2).sum() / (z**2).sum()
        error = np.linalg.norm((kept + shift) @ weight.T - x @ weight.T) / np.linalg.norm(x @ weight.T)
        assert 0.5 < energy < 1
        assert scores.modules[name].retained_energy == pytest.approx(energy, rel=1e-6)
        assert scores.modules[name].output_error == pytest.approx(error, rel=1e-4)


def test_what_only_decoding_prunes_is_measured_as_decoding_prunes_it():
    ids = token_ids(2, 10)
    both, decode, prefill = (score_layers(sparse_model(phase=phase), ids) for phase in ("both", "decode", "prefill"))
    for name, score in both.modules.items():
        assert 0 < score.output_error < 1
        for other in (decode, prefill):
            assert other.modules[name].retained_energy == pytest.approx(score.retained_energy, rel=1e-5)
            assert other.modules[name].output_error == pytest.approx(score.output_error, rel=1e-5)
    assert {score.state for score in decode.modules.values()} == {"decode"}


def test_keeping_everything_keeps_everything():
    model = sparse_model(pattern="4:4", shift="dynamic_mean")
    for module in model.nm_modules().values():
        module.update_offset()
    for score in score_layers(model, token_ids()).modules.values():
        assert score.retained_energy == 1
        assert score.output_error < 1e-5


def test_what_is_not_pruned_is_named():
    overrides = [{"modules": "*.down_proj", "prune": "weights"}]
    model = sparse_model(targets=["*.mlp.*"], ignore=["*.up_proj"], overrides=overrides)
    states = {name: score.state for name, score in score_layers(model, token_ids()).modules.items()}
    assert [name.rsplit(".", 1)[-1] for name in states if ".0." in name] == [
        *(f"{kind}_proj" for kind in "qkvo"),
        *(f"{kind}_proj" for kind in ("gate", "up", "down")),
    ]
    assert states["model.layers.1.mlp.gate_proj"] == "both"
    assert states["model.layers.1.mlp.down_proj"] == "weights"
    assert states["model.layers.1.mlp.up_proj"] == states["model.layers.0.self_attn.q_proj"] == "dense"
    assert "lm_head" not in states


def test_nothing_finite_gives_no_number():
    model = sparse_model(targets=["*.down_proj"])
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.inf
    scores = score_layers(model, token_ids())
    assert scores.modules["model.layers.1.mlp.down_proj"].output_error is None
    assert scores.modules["model.layers.0.mlp.down_proj"].output_error is not None


def test_the_model_is_left_as_it_was():
    model, ids = sparse_model(), token_ids()
    before = model(input_ids=ids).logits
    score_layers(model, ids)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not any(module._forward_hooks for module in model.modules())
