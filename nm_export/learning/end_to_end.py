"""Train sparsity parameters of all blocks at once, against the dense model's predictions or the text itself."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nm_export.batches import Tokens, read_tokens
from nm_export.calibration.processes import Processes
from nm_export.errors import UserError
from nm_export.learning.agreement import load_everywhere, of_first
from nm_export.learning.checkpoints import Checkpoints
from nm_export.learning.divergence import divergence
from nm_export.learning.optimiser import Optimiser
from nm_export.learning.report import HeldOut, LearningReport
from nm_export.learning.trainable import trainable
from nm_export.progress import steps as showing_steps
from nm_export.recipe import LearningSection

CHECKPOINT_STEPS = 20
"""Steps from one checkpoint to the next; there is one after the last step too."""


def learn_end_to_end(
    model: Any,
    sequences: Tokens,
    held_out: Tokens,
    section: LearningSection,
    *,
    checkpoints: Checkpoints,
    processes: Processes,
) -> LearningReport:
    """Train an `NMSparseForCausalLM` in place; it keeps its starting values if held-out text likes them better.

    With several processes, the passes of one step are dealt out among them, so that the result is that of one process
    to the rounding of sums.

    Args:
        model: calibrated sparse model. The dense model that it is compared with is its own, with pruning off.
        sequences: token sequences.
        held_out: further ones.
        section: what to train, and how.
        checkpoints: where to continue from, and what to leave for a later run.
        processes: others that train the same model.

    Raises:
        UserError: weights are offloaded, or the loss became NaN.
    """
    _refuse_offloaded(model)
    batches = [
        batch
        for epoch in range(section.epochs)
        for batch in sequences.shuffled(section.seed + epoch).batches(section.batch_size)
    ]
    per_step = section.gradient_accumulation
    steps = len(batches) // per_step
    before = evaluate(model, held_out, section)
    losses: list[float] = []
    with trainable(
        model, model.nm_modules(), section.parameters, weight_rank=section.weight_rank, seed=section.seed
    ) as leaves:
        optimiser = Optimiser(leaves, section, steps, processes)
        saved = load_everywhere(checkpoints, "end_to_end", processes)
        if saved is not None:
            losses = saved[1]["losses"]
            optimiser.load(saved[0], len(losses))
        with showing_steps("Learning", steps, len(losses)) as advance:
            for step in range(len(losses), steps):
                own = range(step * per_step, (step + 1) * per_step)[processes.rank :: processes.count]
                loss = torch.zeros(1, dtype=torch.float64)
                for index in own:
                    for ids, share in _shares(batches[index], section):
                        part = _loss(model, ids, section) * share / per_step
                        part.backward()
                        loss += part.detach().double().cpu()
                optimiser.step()
                losses.append(float(processes.gather(loss).sum()))
                advance(f"{section.loss} {_recent(losses):.4f}")
                if ((step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps) and processes.rank == 0:
                    checkpoints.save("end_to_end", optimiser.state(), {"losses": losses})
        before, after = of_first(processes, before, evaluate(model, held_out, section))
        kept = after < before
        if not kept:
            leaves.reset()
    return LearningReport("end_to_end", losses, {"model": HeldOut(before, after, kept)})


def _refuse_offloaded(model: Any) -> None:
    # the backward pass would hold every weight that the forward pass has loaded
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UserError(
                f"learning.mode: end_to_end needs the whole model in memory, and {name} is offloaded; use blockwise."
            )


def evaluate(model: Any, held_out: Any, section: LearningSection) -> float:
    """Mean loss over held-out sequences, nats for one token."""
    tokens = read_tokens(held_out, "learn", predicting=True)
    batches = [ids for ids in tokens.split(section.batch_size) if _scored(ids, section)]
    one = _scored(batches[0][:1], section)  # sequences of this length weigh 1
    with torch.no_grad():
        losses = [float(_loss(model, ids, section)) * (_scored(ids, section) / one) for ids in batches]
    return sum(losses) / sum(_scored(ids, section) / one for ids in batches)


def _scored(ids: Tensor, section: LearningSection) -> int:
    """Tokens that the loss is a mean over: of the text itself, all but the first of each sequence."""
    return ids.numel() - (len(ids) if section.loss == "lm" else 0)


def _shares(batch: Sequence[Tensor], section: LearningSection) -> Iterator[tuple[Tensor, float]]:
    """The tensors of a batch, and the share of each in its loss."""
    total = sum(_scored(ids, section) for ids in batch)
    for ids in batch:
        if _scored(ids, section):
            yield ids, _scored(ids, section) / total


def _loss(model: Any, ids: Tensor, section: LearningSection) -> Tensor:
    ids = ids.to(model.device)
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=section.precision == "bfloat16"):
        if section.loss == "kl":
            with torch.no_grad(), model.dense():
                expected = model(input_ids=ids, use_cache=False).logits
        logits = model(input_ids=ids, use_cache=False).logits
    if section.loss == "kl":
        return divergence(logits, expected)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def _recent(losses: list[float], window: int = 10) -> float:
    return sum(losses[-window:]) / len(losses[-window:])
