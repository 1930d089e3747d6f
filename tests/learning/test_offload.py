"""Models whose weights Accelerate keeps elsewhere between two uses."""

import accelerate
import pytest
import torch

from nm_export.calibration import calibrate
from nm_export.errors import UserError
from nm_export.learning import learn
from tests.learning.training import SEQUENCES, assert_equal, calibrated, section, untrained


def offloaded(model, where, folder):
    if where == "memory":
        return accelerate.cpu_offload(model, execution_device="cpu")
    if where == "disk":
        return accelerate.disk_offload(model, folder, execution_device="cpu")
    device_map = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    device_map |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    return accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("where", ["memory", "disk", "second block on disk"])
def test_blocks_are_learned_where_their_weights_are_not(where, tmp_path):
    here, away = calibrated(), untrained()
    offloaded(away, where, tmp_path / "weights")
    assert away.model.layers[1].mlp.up_proj.weight.is_meta
    calibrate(away, SEQUENCES)
    settings = section("blockwise", epochs=2)
    expected = learn(here, SEQUENCES, settings)
    found = learn(away, SEQUENCES, settings, checkpoint_dir=tmp_path / "checkpoints")
    # Accelerate calls the forward that it found, which spells the shift out in one rounding more
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert any(kept for _, _, kept in found.held_out.values())
    assert away.model.layers[1].mlp.up_proj.weight.is_meta
    for name, module in here.nm_modules().items():
        for buffer, value in module.named_buffers():
            torch.testing.assert_close(away.get_submodule(name).get_buffer(buffer), value, rtol=1e-3, atol=1e-3)
    again = untrained()
    offloaded(again, where, tmp_path / "weights of the next run")
    calibrate(again, SEQUENCES)
    assert learn(again, SEQUENCES, settings, checkpoint_dir=tmp_path / "checkpoints") == found
    for name, module in away.nm_modules().items():
        assert_equal(dict(again.get_submodule(name).named_buffers()), dict(module.named_buffers()))


def test_what_needs_weights_in_memory_says_so():
    model = calibrated()
    offloaded(model, "memory", None)
    with pytest.raises(UserError, match="end_to_end needs the whole model in memory"):
        learn(model, SEQUENCES, section("end_to_end"))
    with pytest.raises(UserError, match=r"the weight of model.layers.0.*must be in memory"):
        learn(model, SEQUENCES, section("blockwise", parameters=("scale", "weight")))
    model = calibrated()
    accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)
    with pytest.raises(UserError, match="nm_score is offloaded and cannot be trained"):
        learn(model, SEQUENCES, section("blockwise"))
