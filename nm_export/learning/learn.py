"""Train the sparsity parameters of a calibrated model, as its recipe says."""

from pathlib import Path
from typing import Any

from torch import Tensor

from nm_export.calibration.processes import Processes
from nm_export.errors import UserError
from nm_export.learning.agreement import copy_of_first
from nm_export.learning.blockwise import learn_blockwise
from nm_export.learning.checkpoints import Checkpoints
from nm_export.learning.end_to_end import learn_end_to_end
from nm_export.learning.report import LearningReport
from nm_export.learning.trainable import is_trainable, shared_shifts
from nm_export.recipe import LearningSection

_MODES = {"blockwise": learn_blockwise, "end_to_end": learn_end_to_end}


def learn(
    model: Any,
    sequences: Tensor,
    section: LearningSection,
    *,
    checkpoint_dir: Path | None = None,
    checkpoint_key: str = "",
    processes: Processes | None = None,
) -> LearningReport:
    """Train an `NMSparseForCausalLM` in place.

    Weights that are trained are listed in `config.sparsity["rewritten"]`; with pruning off, such a model is no longer
    its base model.

    Args:
        model: calibrated sparse model.
        sequences: token ids, int64 `[num_samples + held_out_samples, sequence_length]`; the last ones are held out.
        section: what to train, and how.
        checkpoint_dir: folder for what a later run with the same key continues from; it is left there.
        checkpoint_key: of model, text and recipe.
        processes: others that train the same model.

    Raises:
        UserError: nothing to train, too few sequences, the loss became NaN, or the mode cannot do with this model; the
            model is as it was, but for blocks that were finished.
    """
    processes = processes or Processes()
    _check(model, len(sequences), section)
    # machines of several kinds may have calibrated to different last bits
    copy_of_first(processes, (buffer for name, buffer in model.named_buffers() if ".nm_" in name))
    with shared_shifts(model):
        report = _MODES[section.mode](
            model,
            sequences[: -section.held_out_samples],
            sequences[-section.held_out_samples :],
            section,
            checkpoints=Checkpoints(checkpoint_dir, checkpoint_key),
            processes=processes,
        )
    if "weight" in section.parameters:
        sparsity = model.config.sparsity
        kept = tuple(f"{part}." for part, (_, _, is_kept) in report.held_out.items() if is_kept)
        everywhere = report.mode == "end_to_end" and bool(kept)
        names = {f"{name}.weight" for name in model.nm_modules() if everywhere or name.startswith(kept)}
        sparsity["rewritten"] = sorted(names | set(sparsity["rewritten"]))
    return report


def _check(model: Any, sequences: int, section: LearningSection) -> None:
    for name, buffer in model.named_buffers():
        if ".nm_" in name and buffer.is_meta:
            raise UserError(
                f"{name} is offloaded and cannot be trained; dispatch the model with offload_buffers=False."
            )
    samples = sequences - section.held_out_samples
    if samples < 1:
        raise UserError(
            f"learning has {sequences} sequences and needs more than learning.held_out_samples "
            f"({section.held_out_samples})."
        )
    batches = -(-samples // section.batch_size)
    if batches < section.gradient_accumulation:
        raise UserError(
            f"learning has {batches} batches, fewer than learning.gradient_accumulation "
            f"({section.gradient_accumulation}); lower it or raise learning.num_samples."
        )
    if not any(is_trainable(module, section.parameters) for module in model.nm_modules().values()):
        raise UserError(
            f"learning.parameters ({', '.join(section.parameters)}) finds nothing to train; give the sparsity section "
            "shift: learned, output_scale, output_bias: learned or residual_rank, or train the weight."
        )
