"""A model that nothing has calibrated is not written under the names of what it lacks."""

import copy

import pytest

from nm_export import UserError, calibrate, export_onnx, save, sparsify
from tests.tiny_models import dense_model, token_ids

WAITING = {
    "score: weight_norm": {"score": "weight_norm"},
    "score: custom:mine": {"score": "custom:mine"},
    "shift: static_channel": {"shift": "static_channel"},
    "output_bias: calibrated": {"output_bias": "calibrated"},
    "a residual": {"residual_rank": 2},
}


@pytest.mark.parametrize("word", WAITING)
def test_what_waits_for_calibration_is_not_written(word, tmp_path):
    model = sparsify(dense_model(), pattern="4:8", **WAITING[word])
    for one in (model, copy.deepcopy(model)):
        for write in (save, lambda *args: export_onnx(*args, tokenizer_dir=tmp_path)):
            with pytest.raises(UserError, match=f"the model has {word}, which nothing has computed yet"):
                write(one, tmp_path)
    assert not any(tmp_path.iterdir())
    scores = {"*": lambda weight, statistics: weight.abs().sum(0)} if "custom" in word else None
    calibrate(model, token_ids(4, 16), scores=scores)
    save(model, tmp_path / "saved")


def test_a_model_that_needs_no_calibration_is_written_at_once(tmp_path):
    save(sparsify(dense_model(), pattern="4:8", shift="dynamic_mean"), tmp_path / "saved")
