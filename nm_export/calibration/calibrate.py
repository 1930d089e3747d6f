"""Fill the sparsity parameters of a model from its weights and from text."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nm_export.arguments import require_count, require_sparse
from nm_export.batches import Tokens, check_vocabulary, read_tokens
from nm_export.calibration.bias import calibrate_bias
from nm_export.calibration.blocks import BlockCalls, decoder_blocks
from nm_export.calibration.budget import OpenBudget, choose_patterns, open_budget, set_budget
from nm_export.calibration.custom_scores import CustomScores, Scores, is_custom
from nm_export.calibration.neutral import end_of_waiting
from nm_export.calibration.offload import placed, weights_at_hand
from nm_export.calibration.processes import Processes
from nm_export.calibration.residual import low_rank_factors
from nm_export.calibration.scores import amber_score, clact_score, smoothquant_score, weight_norm_score
from nm_export.calibration.statistics import InputStatistics, NotFiniteError, Statistic, collecting
from nm_export.calibration.weight_pruning import dense_weights, keep_dense_weights, prune_weights
from nm_export.errors import UserError
from nm_export.memory import is_larger_than_memory
from nm_export.modeling import NMSparseForCausalLM
from nm_export.progress import track

_SCORE_NEEDS: dict[str, Statistic] = {"clact": "square_sum", "smoothquant": "maximum"}
_SHIFT_NEEDS: dict[str, Statistic] = {"static_channel": "sum", "static_scalar": "median_sum"}


def calibrate(
    model: Any,
    sequences: Any = None,
    batch_size: int = 4,
    processes: Processes | None = None,
    *,
    block_by_block: bool | None = None,
    scores: Scores | None = None,
) -> None:
    """Calibrate an `NMSparseForCausalLM` in place; what its schemes call `learned` stays neutral.

    Statistics are those of the dense model: pruning is off while they are gathered. Linears of one input group are
    measured once and get equal scores and shifts. Weight pruning comes after the statistics, and output biases last:
    they repair the sparse model as it is by then. A model whose schemes need no text runs no forward pass.

    Where `sparsify` was given a budget, the first call spends it: text decides which linears are pruned, and at which
    pattern; the others become dense linears again.

    Args:
        model: sparse model; its `nm_*` buffers are overwritten, and so are weights that its schemes prune.
        sequences: token ids, int64 `[samples, length]` or whatever else `nm_export.batches.read_tokens` takes
            (sequences of several lengths, padded batches with their masks, iterables of these), the same in every
            process; None where no scheme needs text. Padding is not looked at.
        batch_size: sequences in one forward pass; those of one length go through the model together.
        processes: others that calibrate the same model: each gathers statistics from its share of the batches. All get
            the parameters that one process finds, bit for bit, if they compute with as many threads.
        block_by_block: whether all sequences go through one block of the decoder before the next: each block's weights
            are read once, and the hidden states of all sequences are in memory. The parameters are the same, bit for
            bit. None decides for it where `is_larger_than_memory`.
        scores: of modules whose score is `custom:NAME`: float32 vectors `[K]` by names of modules or wildcards, of
            which the last that matches counts, unless a module is named; a function of the weights that read an input,
            `[O, K]`, and the input's `InputStatistics` (its `channel_mean`, `channel_norm`, `channel_maximum` and
            `mean_median`; None without text) that returns `[K]`; or such functions by names. Linears that read one
            input have one score. None keeps the scores that earlier calls have set.

    Raises:
        UserError: the model is not sparse; text is needed and missing, or activations are NaN; a score is missing, has
            another shape, is negative or not finite, or belongs to no module; the budget cannot be met.
    """
    require_sparse(model, "calibrate")
    require_count(batch_size, "batch_size", "calibrate")
    tokens = None if sequences is None else check_vocabulary(read_tokens(sequences, "calibrate"), model, "calibrate")

    def fill(sparse: Any, shared: Processes | None = None) -> None:
        _fill_all(sparse, tokens, batch_size, shared or Processes(), block_by_block, scores)

    budget = open_budget(model)
    if budget is not None:
        if tokens is None:
            raise UserError("sparsity.budget: text decides what is pruned, pass `sequences` to calibrate.")
        dense = model.to_dense()
        try:
            chosen = choose_patterns(dense, budget.plan, budget.section, tokens, fill, processes)
        except BaseException:
            _back_to_budget(dense, budget)
            raise
        set_budget(dense, None)
        keep_dense_weights(NMSparseForCausalLM.from_dense(dense, budget.plan.with_patterns(chosen).sparsity()))
    fill(model, processes)
    end_of_waiting(model)


def _fill_all(
    model: Any,
    sequences: Tokens | None,
    batch_size: int,
    processes: Processes,
    block_by_block: bool | None,
    given: Scores | None,
) -> None:
    modules = model.nm_modules()
    schemes = {name: scheme for scheme in model.config.sparsity["schemes"] for name in scheme["modules"]}
    groups = model.config.sparsity["input_groups"]
    scores = CustomScores(given, [group for group in groups if is_custom(schemes[group[0]]["score"])])
    statistics = {
        group[0]: InputStatistics(modules[group[0]].in_features, wanted)
        for group in groups
        if (wanted := _needs(schemes[group[0]]) | (scores.needs(group[0]) if sequences else frozenset()))
    }
    biased = [name for name in modules if schemes[name]["output_bias"] == "calibrated"]
    if sequences is None and (statistics or biased):
        first = next(iter([*statistics, *biased]))
        raise UserError(f"{_why(schemes[first], first)}: calibration needs text, pass `sequences`.")
    with dense_weights(model):
        if statistics:
            assert sequences is not None
            if block_by_block is None:  # free memory changes: all processes go by the first one's answer
                answer = torch.tensor([is_larger_than_memory(model)], dtype=torch.float64)
                block_by_block = bool(processes.gather(answer)[0])
            gather = _gather_by_block if block_by_block else _gather
            gather(model, sequences, batch_size, statistics, processes)
        for group in groups:
            linears = [modules[name] for name in group]
            with weights_at_hand(linears):
                measured = statistics.get(group[0])
                custom = is_custom(schemes[group[0]]["score"])
                own = scores.of(group[0], linears, measured) if custom else None
                _fill_group(linears, schemes[group[0]], measured, own)
    if biased:
        assert sequences is not None
        calibrate_bias(model, biased, sequences)


def _back_to_budget(dense: Any, budget: OpenBudget) -> None:
    """Make a model sparse again as it was before its budget could not be spent."""
    if hasattr(dense, "to_dense"):  # the attempt broke off while the model was sparse
        dense.to_dense()
    sparse = NMSparseForCausalLM.from_dense(dense, budget.plan.sparsity())
    keep_dense_weights(sparse)
    prune_weights(sparse)
    set_budget(sparse, replace(budget, sparsity=sparse.config.sparsity))


def _needs(scheme: Mapping[str, Any]) -> set[Statistic]:
    """Statistics of the input that a scheme is calibrated from."""
    needs = {_SCORE_NEEDS.get(scheme["score"]), _SHIFT_NEEDS.get(scheme["shift"])}
    return {need for need in needs if need is not None}


def _why(scheme: Mapping[str, Any], name: str) -> str:
    if scheme["shift"] in _SHIFT_NEEDS:
        return f"{name} has a static shift"
    if scheme["score"] in _SCORE_NEEDS:
        return f"{name} has the score {scheme['score']}"
    return f"{name} has a calibrated output bias"


def _gather(
    model: Any, sequences: Tokens, batch_size: int, statistics: dict[str, InputStatistics], processes: Processes
) -> None:
    """Run the dense model over this process's batches; after each, add up what all processes have seen."""
    rounds = processes.rounds(sequences.split(batch_size))
    measured = {name: InputStatistics(each.channels, each.tensors) for name, each in statistics.items()}
    with model.dense(), torch.inference_mode(), collecting(measured, model.nm_modules()):
        for batch in track(rounds, "Calibrating", total=len(rounds)):
            if batch is not None:
                with suppress(NotFiniteError):  # the others wait for this one's sums; the sums tell everybody
                    model.base_model(input_ids=placed(model, batch), use_cache=False)
            processes.add(statistics, measured)


def _gather_by_block(
    model: Any, sequences: Tokens, batch_size: int, statistics: dict[str, InputStatistics], processes: Processes
) -> None:
    """Do as `_gather`, with each block for all of this process's batches in turn."""
    rounds = processes.rounds(sequences.split(batch_size))
    blocks = decoder_blocks(model, "use calibration.block_by_block: false")
    with model.dense(), torch.inference_mode():
        calls = BlockCalls(model, blocks, [batch for batch in rounds if batch is not None])
        for path, block in track(blocks.items(), "Calibrating", total=len(blocks)):
            totals = {name: each for name, each in statistics.items() if name.startswith(f"{path}.")}
            measured = {name: InputStatistics(each.channels, each.tensors) for name, each in totals.items()}
            with collecting(measured, model.nm_modules()):
                for index, batch in enumerate(rounds):
                    if batch is not None:
                        with suppress(NotFiniteError):
                            calls.step(path, block, index)
                    processes.add(totals, measured)


def _fill_group(
    linears: Sequence[Any], scheme: Mapping[str, Any], measured: InputStatistics | None, custom: Tensor | None
) -> None:
    """Fill what comes from the weights and from the statistics, for linears that read one input under one scheme.

    Args:
        linears: of the group.
        scheme: theirs.
        measured: statistics of the input, where something needs them.
        custom: the score `[K]` that a caller gave.
    """
    weights = [linear.weight for linear in linears]
    score = scheme["score"]
    scores: Tensor | None
    if score == "weight_norm":
        scores = weight_norm_score(weights, scheme["score_exponent"])
    elif score == "amber":
        scores = amber_score(weights)
    elif score == "clact":
        assert measured is not None
        scores = clact_score(measured.channel_norm)
    elif score == "smoothquant":
        assert measured is not None
        scores = smoothquant_score(measured.channel_maximum, weights)
    else:  # magnitude and clact_noncausal: nothing is stored
        scores = custom
    shift = None
    if scheme["shift"] in _SHIFT_NEEDS:
        assert measured is not None
        shift = measured.channel_mean if scheme["shift"] == "static_channel" else measured.mean_median
    for linear in linears:
        if scores is not None:
            _fill(linear.nm_score, scores)
        if shift is not None:
            _fill(linear.nm_shift, shift)
        linear.update_offset()
        if linear.nm_residual_in is not None:  # the group's linears may differ in what comes after their products
            B, A = low_rank_factors(linear.weight, len(linear.nm_residual_in))
            _fill(linear.nm_residual_in, B)
            _fill(linear.nm_residual_out, A)


def _fill(buffer: Tensor | None, values: Tensor) -> None:
    assert buffer is not None
    with torch.no_grad():
        buffer.copy_(values)
