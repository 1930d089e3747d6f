"""Sparsity parameters as leaves, for a training loop of the caller's own."""

import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, get_args

from nm_export.arguments import named, require_count, require_sparse
from nm_export.calibration.budget import refuse_open_budget
from nm_export.errors import UserError
from nm_export.learning import trainable as linears
from nm_export.learning.trainable import Leaves, is_trainable, shared_shifts
from nm_export.recipe.sections import Learnable


@contextmanager
def trainable(
    model: Any,
    parameters: str | Collection[str] = ("shift", "scale", "bias"),
    *,
    weight_rank: int = 16,
    seed: int = 0,
) -> Iterator[Leaves]:
    """Within the block, make sparsity parameters leaves that any optimiser can train, and freeze all others.

        with nm_export.trainable(model, ["shift", "bias"]) as leaves:
            optimiser = torch.optim.AdamW(leaves.values(), lr=1e-3)
            for ids in batches:
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                optimiser.step()
                optimiser.zero_grad()

    Linears that read one input have one shift between them. The choice of channels is a constant of the backward pass:
    gradients are those of the linears with their kept sets fixed. `leaves.reset()` gives every leaf its starting value.

    When the block ends well, updates are added to their weights, which `config.sparsity["rewritten"]` lists from then
    on, and offsets follow shifts and weights. When it raises, every parameter is what it was before.

    Args:
        model: calibrated sparse model.
        parameters: among `shift`, `scale`, `bias`, `residual` and `weight`, where the schemes have them: shifts for
            each channel, not for the layer. `weight` is a low-rank update.
        weight_rank: rank of the update of each weight.
        seed: of the start of the updates, which begin as 0.

    Yields:
        The leaves, float32, by names such as `model.layers.0.mlp.down_proj.nm_shift`.

    Raises:
        UserError: no such parameter, or nothing to train; parameters are offloaded.
    """
    require_sparse(model, "trainable")
    refuse_open_budget(model, "trainable")
    require_count(weight_rank, "weight_rank", "trainable")
    wanted = _parameters(parameters)
    check_buffers(model)
    check_trainable(model, wanted)
    modules = model.nm_modules()
    with (
        shared_shifts(model),
        linears.trainable(model, modules, wanted, weight_rank=weight_rank, seed=seed) as leaves,
    ):
        yield leaves
        changed = [name for name in modules if _is_updated(leaves, name)]
    note_rewritten(model, changed)


def check_buffers(model: Any) -> None:
    """Raise a UserError where Accelerate has put sparsity parameters out of reach."""
    for name, buffer in model.named_buffers():
        if ".nm_" in name and buffer.is_meta:
            raise UserError(
                f"{name} is offloaded and cannot be trained; dispatch the model with offload_buffers=False."
            )


def check_trainable(model: Any, parameters: Collection[str]) -> None:
    """Raise a UserError unless a linear of a sparse model has one of these parameters."""
    if not any(is_trainable(module, parameters) for module in model.nm_modules().values()):
        raise UserError(
            f"learning.parameters ({', '.join(parameters)}) finds nothing to train; give the sparsity section "
            "shift: learned, output_scale, output_bias: learned or residual_rank, or train the weight."
        )


def note_rewritten(model: Any, names: Collection[str]) -> None:
    """Write into a sparse model's configuration that the weights of these linears are no longer the base model's."""
    sparsity = model.config.sparsity
    sparsity["rewritten"] = sorted({f"{name}.weight" for name in names} | set(sparsity["rewritten"]))


def _parameters(given: Any) -> tuple[str, ...]:
    known = get_args(Learnable)
    words = (given,) if isinstance(given, str) else given
    if not isinstance(words, Collection):
        raise UserError(f"trainable: parameters are a list of {', '.join(known)}, not {named(given)}.")
    for word in words:
        if word not in known:
            close = difflib.get_close_matches(str(word)[:60], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"they are {', '.join(known)}."
            raise UserError(f"trainable: there is no parameter {str(word)[:60]!r}; {hint}")
    return tuple(words)


def _is_updated(leaves: Leaves, name: str) -> bool:
    update = leaves.get(f"{name}.update_out")
    return update is not None and bool(update.any())
