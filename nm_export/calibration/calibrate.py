"""Fill the sparsity parameters of a model: scores from its weights, static shifts from text."""

from typing import Any

import torch
from torch import Tensor

from nm_export.calibration.scores import weight_norm_score
from nm_export.calibration.statistics import InputStatistics, collecting
from nm_export.errors import UserError
from nm_export.progress import track

_STATIC = ("static_scalar", "static_channel")


def calibrate(model: Any, sequences: Tensor | None = None, batch_size: int = 4) -> None:
    """Calibrate an `NMSparseForCausalLM` in place.

    Statistics are those of the dense model: pruning is off while they are gathered. Linears of one input group are
    measured once and get equal parameters. A model whose schemes need no statistics runs no forward pass.

    Args:
        model: sparse model; its `nm_score`, `nm_shift` and `nm_offset` buffers are overwritten.
        sequences: token ids, int64 `[samples, length]`; may be None when no scheme has a static shift.
        batch_size: sequences in one forward pass.

    Raises:
        UserError: a static shift without sequences, or NaN activations.
    """
    modules = model.nm_modules()
    groups = model.config.sparsity["input_groups"]
    scheme_of = {name: scheme for scheme in model.config.sparsity["schemes"] for name in scheme["modules"]}
    for group in groups:
        if scheme_of[group[0]]["score"] == "weight_norm":
            exponent = scheme_of[group[0]]["score_exponent"]
            score = weight_norm_score((modules[name].weight for name in group), exponent)
            for name in group:
                _fill(modules[name].nm_score, score)

    measured = {group[0]: group for group in groups if scheme_of[group[0]]["shift"] in _STATIC}
    if measured:
        if sequences is None:
            raise UserError(f"{next(iter(measured))} has a static shift: calibration needs text, pass `sequences`.")
        statistics = {
            name: InputStatistics(modules[name].in_features, scheme_of[name]["shift"] == "static_scalar")
            for name in measured
        }
        _run(model, sequences, batch_size, statistics)
        for first, group in measured.items():
            channelwise = scheme_of[first]["shift"] == "static_channel"
            shift = statistics[first].channel_mean if channelwise else statistics[first].mean_median
            for name in group:
                _fill(modules[name].nm_shift, shift)
    for module in modules.values():
        module.update_offset()


def _run(model: Any, sequences: Tensor, batch_size: int, statistics: dict[str, InputStatistics]) -> None:
    batches = sequences.split(batch_size)
    with model.dense(), torch.inference_mode(), collecting(statistics, model.nm_modules()):
        for batch in track(batches, "Calibrating", total=len(batches)):
            model.base_model(input_ids=batch.to(model.device), use_cache=False)


def _fill(buffer: Tensor | None, values: Tensor) -> None:
    assert buffer is not None
    with torch.no_grad():
        buffer.copy_(values)
