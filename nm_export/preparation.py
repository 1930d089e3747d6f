"""From a recipe to a calibrated model in memory: load -> plan -> allocate -> calibrate -> learn."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nm_export.calibration import calibrate
from nm_export.calibration.allocation import allocate, measure_damage
from nm_export.calibration.processes import Processes
from nm_export.calibration.text import TokenSequences, read_sequences
from nm_export.errors import UserError
from nm_export.evaluation import perplexity, torch_logits
from nm_export.learning import LearningReport, learn
from nm_export.modeling import NMSparseForCausalLM
from nm_export.plan import Plan, make_plan
from nm_export.recipe import CalibrationSection, Recipe
from nm_export.recipe.patterns import saved_share
from nm_export.sources import load_model
from nm_export.stages import Stages

ALLOCATION_WINDOWS, ALLOCATION_WINDOW = 4, 256
"""Windows of calibration text, and tokens in each, on which the damage of pruning is measured for a budget."""


_ELEMENTS = 1 << 22  # of a weight that are looked at together


@dataclass(frozen=True)
class Prepared:
    """A calibrated model and what it was made from.

    Attributes:
        model: `NMSparseForCausalLM`.
        tokenizer: its tokenizer.
        provenance: of the base model, JSON values.
        plan: what is pruned.
        calibration_text: sequences that calibration has seen.
        held_out: sequences that it has not.
        dense_perplexity: of the base model on `held_out`; None when it was not to be measured.
        learning: what was trained, or None.
    """

    model: Any
    tokenizer: Any
    provenance: dict[str, Any]
    plan: Plan
    calibration_text: TokenSequences
    held_out: TokenSequences
    dense_perplexity: float | None
    learning: LearningReport | None


def prepare(recipe: Recipe, stages: Stages, processes: Processes, checkpoint_dir: Path | None) -> Prepared:
    """Do what a recipe says up to the calibrated model; every process of a launch does it alike.

    Args:
        recipe: what to do.
        stages: where to announce what is going on.
        processes: those of the launch.
        checkpoint_dir: where learning leaves what a later run continues from.

    Raises:
        UserError: something that the user can correct.
    """
    with stages.stage("load", f"Loading {recipe.model.source}"):
        model, tokenizer, provenance = load_model(recipe.model)
        _refuse_nan(model, recipe)
    plan = make_plan(model, recipe)
    with stages.stage("text", "Reading text"):
        text = read_sequences(tokenizer, recipe.calibration)
        held_out = read_sequences(tokenizer, recipe.held_out)
        learning_text = read_sequences(tokenizer, _learning_text(recipe)) if recipe.learning.mode != "none" else None
    _refuse_foreign_tokens(model, recipe, [text, held_out, learning_text])
    dense_perplexity = None
    if recipe.held_out.enabled and processes.rank == 0:
        # before anything changes a weight
        with stages.stage("evaluate_dense", "Measuring the dense model's perplexity"):
            dense_perplexity = perplexity(torch_logits(model), held_out.input_ids)
    if recipe.sparsity.budget is not None:
        with stages.stage("allocate", f"Choosing modules for a budget of {recipe.sparsity.budget:.0%}"):
            model, plan = _allocate(model, plan, recipe, text, processes)
    model = NMSparseForCausalLM.from_dense(model, plan.sparsity())
    with stages.stage("calibrate", f"Calibrating {len(plan.pruned)} linears"):
        by_block = recipe.calibration.block_by_block
        calibrate(model, text.input_ids, recipe.calibration.batch_size, processes, block_by_block=by_block)
    report = None
    if learning_text is not None:
        with stages.stage("learn", f"Learning, {recipe.learning.mode.replace('_', ' ')}"):
            report = learn(
                model,
                learning_text.input_ids,
                recipe.learning,
                checkpoint_dir=checkpoint_dir,
                checkpoint_key=_checkpoint_key(recipe, plan, provenance, text, learning_text),
                processes=processes,
            )
    return Prepared(model, tokenizer, provenance, plan, text, held_out, dense_perplexity, report)


def _allocate(model: Any, plan: Plan, recipe: Recipe, text: TokenSequences, processes: Processes) -> tuple[Any, Plan]:
    """Choose patterns under the recipe's budget; return the dense model again, and the plan with the choice."""
    sparsity = recipe.sparsity
    assert sparsity.budget is not None
    sparse = NMSparseForCausalLM.from_dense(model, plan.sparsity())
    calibrate(sparse, text.input_ids, recipe.calibration.batch_size)
    length = min(ALLOCATION_WINDOW, text.input_ids.shape[1])
    windows = text.input_ids[:ALLOCATION_WINDOWS, :length]
    damages = measure_damage(sparse, windows, sparsity.budget_patterns or (sparsity.pattern,))
    # every process goes by the first one's numbers: a last bit must not give them different models
    first = processes.gather(torch.tensor([list(damage.kl.values()) for damage in damages]).double().flatten())[0]
    rows = first.reshape(len(damages), -1).tolist()
    damages = [replace(d, kl=dict(zip(d.kl, row, strict=True))) for d, row in zip(damages, rows, strict=True)]
    chosen = allocate(
        damages, sparsity.budget * saved_share(sparsity.pattern), sum(linear.macs for linear in plan.linears)
    )
    return sparse.to_dense(), plan.with_patterns(chosen)


def _learning_text(recipe: Recipe) -> CalibrationSection:
    """The calibration text in the numbers that learning asks for."""
    learning = recipe.learning
    return recipe.calibration.model_copy(
        update={
            "num_samples": learning.num_samples + learning.held_out_samples,
            "sequence_length": learning.sequence_length,
            "seed": learning.seed,
        }
    )


def _checkpoint_key(
    recipe: Recipe, plan: Plan, provenance: dict[str, Any], text: TokenSequences, learning_text: TokenSequences
) -> str:
    facts = {
        "model": provenance,
        "sparsity": plan.sparsity(),
        "calibration": [text.provenance, recipe.calibration.batch_size],
        "learning": [learning_text.provenance, recipe.learning.model_dump(mode="json")],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _refuse_foreign_tokens(model: Any, recipe: Recipe, texts: list[TokenSequences | None]) -> None:
    known = model.get_input_embeddings().weight.shape[0]
    largest = max(int(text.input_ids.max()) for text in texts if text is not None)
    if largest >= known:
        raise UserError(
            f"the tokenizer of {recipe.model.source} makes the token {largest:,}, and the "
            f"model knows {known:,} tokens; give the tokenizer that belongs to the model."
        )


def _refuse_nan(model: torch.nn.Module, recipe: Recipe) -> None:
    for name, parameter in model.named_parameters():
        if not all(part.isfinite().all() for part in parameter.detach().reshape(-1).split(_ELEMENTS)):
            overflows = recipe.model.dtype == "float16"
            hint = "set model.dtype to bfloat16 or float32" if overflows else "the checkpoint is damaged"
            raise UserError(f"{recipe.model.source} holds NaN or infinite values in {name}; {hint}.")
