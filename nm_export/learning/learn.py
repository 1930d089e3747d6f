"""Train the sparsity parameters of a calibrated model, as a section of a recipe or keyword arguments say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nm_export.arguments import named, require_sparse
from nm_export.batches import Tokens, check_vocabulary, read_tokens
from nm_export.calibration.budget import refuse_open_budget
from nm_export.calibration.processes import Processes
from nm_export.errors import UserError
from nm_export.learning.agreement import copy_of_first
from nm_export.learning.blockwise import learn_blockwise
from nm_export.learning.checkpoints import Checkpoints
from nm_export.learning.end_to_end import learn_end_to_end
from nm_export.learning.own_loop import check_buffers, check_trainable, note_rewritten
from nm_export.learning.report import LearningReport
from nm_export.learning.trainable import shared_shifts
from nm_export.recipe import LearningSection
from nm_export.recipe.fields import with_fields_of
from nm_export.recipe.reading import section_from_fields

_OF_THE_TEXT = ("num_samples", "sequence_length")
_MODES = {"blockwise": learn_blockwise, "end_to_end": learn_end_to_end}


@with_fields_of(LearningSection, leave_out=_OF_THE_TEXT)
def learn(
    model: Any,
    sequences: Any,
    section: LearningSection | Mapping[str, Any] | None = None,
    *,
    checkpoint_dir: str | Path | None = None,
    checkpoint_key: str = "",
    processes: Processes | None = None,
    **fields: Any,
) -> LearningReport:
    """Train an `NMSparseForCausalLM` in place, as in `learn(model, ids, mode="end_to_end", parameters=["shift"])`.

    Weights that are trained are listed in `config.sparsity["rewritten"]`; with pruning off, such a model is no longer
    its base model.

    Args:
        model: calibrated sparse model.
        sequences: token ids, int64 `[samples, length]` or whatever else `nm_export.batches.read_tokens` takes; the last
            `held_out_samples` are held out. Padding is in no loss.
        section: what to train, and how; where it says how many sequences of which length there are, they must be so.
        checkpoint_dir: folder for what a later run with the same key continues from; it is left there.
        checkpoint_key: of model, text and recipe.
        processes: others that train the same model.
        **fields: the fields of `LearningSection` instead of a section.

    Raises:
        UserError: wrong settings, nothing to train, too few sequences, the loss became NaN, or the mode cannot do with
            this model; the model is as it was, but for blocks that were finished.
    """
    require_sparse(model, "learn")
    refuse_open_budget(model, "learn")
    section = _section(section, fields)
    processes = processes or Processes()
    tokens = check_vocabulary(read_tokens(sequences, "learn", predicting=section.loss == "lm"), model, "learn")
    _check(model, tokens, section)
    # machines of several kinds may have calibrated to different last bits
    copy_of_first(processes, (buffer for name, buffer in model.named_buffers() if ".nm_" in name))
    with shared_shifts(model):
        report = _MODES[section.mode](
            model,
            tokens[: -section.held_out_samples],
            tokens[-section.held_out_samples :],
            section,
            checkpoints=Checkpoints(None if checkpoint_dir is None else Path(checkpoint_dir), checkpoint_key),
            processes=processes,
        )
    if "weight" in section.parameters:
        kept = tuple(f"{part}." for part, held_out in report.held_out.items() if held_out.kept)
        everywhere = report.mode == "end_to_end" and bool(kept)
        note_rewritten(model, [name for name in model.nm_modules() if everywhere or name.startswith(kept)])
    return report


def _section(given: Any, fields: Mapping[str, Any]) -> LearningSection:
    """What the caller means, with a mode."""
    if given is not None and fields:
        raise UserError("learn takes a LearningSection or its fields as keyword arguments, not both.")
    if given is not None and not isinstance(given, (LearningSection, Mapping)):
        raise UserError(f"learn takes a LearningSection or its fields as keyword arguments, not {named(given)}.")
    if isinstance(given, LearningSection):
        section = given
    else:
        values: Mapping[str, Any] = fields if given is None else given
        for name in _OF_THE_TEXT:
            if name in values:
                raise UserError(f"learn: {name} is of recipes, which choose a text; learn trains on what it is given.")
        section = section_from_fields(LearningSection, values, "learn")
        if section.mode == "blockwise" and "loss" in values:
            raise UserError("learn: blocks are fitted by mean squared error; loss is of mode end_to_end.")
        for name, factors in (("weight_rank", ["weight"]), ("weight_learning_rate", ["weight", "residual"])):
            if name in values and not set(factors) & set(section.parameters):
                raise UserError(
                    f"learn: {name} is about training {' or '.join(factors)}, which parameters do not name."
                )
    if section.mode == "none":
        raise UserError("learn: mode is none, which trains nothing; give mode blockwise or end_to_end.")
    return section


def _check(model: Any, tokens: Tokens, section: LearningSection) -> None:
    check_buffers(model)
    sequences = len(tokens)
    samples = sequences - section.held_out_samples
    if "num_samples" in section.model_fields_set and samples != section.num_samples:
        raise UserError(
            f"learn was given {sequences} sequences, and its section wants {section.num_samples} and "
            f"{section.held_out_samples} that are held out; leave num_samples out of the section, or give as many."
        )
    lengths = set(map(len, tokens))
    if "sequence_length" in section.model_fields_set and lengths != {section.sequence_length}:
        raise UserError(
            f"learn was given sequences of {min(lengths)} to {max(lengths)} tokens, and its section wants "
            f"{section.sequence_length}; leave sequence_length out of the section, or give such sequences."
        )
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
    check_trainable(model, section.parameters)
