"""A budget of multiply-accumulates: which linears of a model are pruned under it, and at which pattern."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from nm_export.batches import Tokens
from nm_export.calibration.allocation import allocate, measure_damage
from nm_export.calibration.processes import Processes
from nm_export.calibration.weight_pruning import keep_dense_weights
from nm_export.errors import UserError
from nm_export.modeling import NMSparseForCausalLM
from nm_export.plan import Plan
from nm_export.recipe import SparsitySection
from nm_export.recipe.patterns import saved_share

ALLOCATION_WINDOWS, ALLOCATION_WINDOW = 4, 256
"""Sequences of calibration text, and tokens in each, on which the damage of pruning is measured."""


@dataclass(frozen=True)
class OpenBudget:
    """A budget that waits for the text which decides what it is spent on.

    Attributes:
        plan: what is pruned where nothing limits it.
        section: with the budget.
        sparsity: of the model's configuration, to which the budget belongs: that very object.
    """

    plan: Plan
    section: SparsitySection
    sparsity: Mapping[str, Any]


def set_budget(model: Any, budget: OpenBudget | None) -> None:
    """Leave a budget on a sparse model for `calibrate`, or take away what was left there."""
    model.__dict__.pop("_nm_budget", None)
    if budget is not None:
        model.__dict__["_nm_budget"] = budget  # deepcopy and pickle take it along


def open_budget(model: Any) -> OpenBudget | None:
    """The budget that a sparse model waits to spend, or None."""
    budget: OpenBudget | None = model.__dict__.get("_nm_budget")
    return budget if budget is not None and budget.sparsity is model.config.sparsity else None


def refuse_open_budget(model: Any, caller: str) -> None:
    """Raise a UserError for a model whose budget nothing has spent: it prunes more than was asked for."""
    if open_budget(model) is not None:
        raise UserError(f"{caller}: the model has a budget that is not spent yet; calibrate it with text first.")


def choose_patterns(
    dense: Any,
    plan: Plan,
    section: SparsitySection,
    tokens: Tokens,
    fill: Callable[[Any], None],
    processes: Processes | None = None,
) -> dict[str, str | None]:
    """Choose a pattern for each pruned linear of a plan, None where it stays dense; the dense model is as it was.

    Args:
        dense: the model that the plan was made for.
        plan: all that may be pruned.
        section: with the budget, and the patterns that it may choose from.
        tokens: calibration text.
        fill: calibrates the sparse model.
        processes: others that do the same.

    Raises:
        UserError: the patterns cannot save that much, or only weights are pruned.
    """
    assert section.budget is not None
    sparse = NMSparseForCausalLM.from_dense(dense, plan.sparsity())
    keep_dense_weights(sparse)  # a later stage starts from the dense model again
    if not sparse.config.sparsity["input_groups"]:
        raise UserError(
            "sparsity.budget chooses among linears whose inputs are pruned, and all of these have prune: weights; "
            "leave budget out, and name the linears with targets."
        )
    fill(sparse)
    windows = tokens[:ALLOCATION_WINDOWS].shortened(ALLOCATION_WINDOW)
    damages = measure_damage(sparse, windows, section.budget_patterns or (section.pattern,))
    # every process goes by the first one's numbers: a last bit must not give them different models
    kl = torch.tensor([list(damage.kl.values()) for damage in damages]).double().flatten()
    rows = (processes or Processes()).gather(kl)[0].reshape(len(damages), -1).tolist()
    damages = [replace(d, kl=dict(zip(d.kl, row, strict=True))) for d, row in zip(damages, rows, strict=True)]
    share = section.budget * saved_share(section.pattern)
    chosen = allocate(damages, share, sum(linear.macs for linear in plan.linears))
    sparse.to_dense()
    return chosen
