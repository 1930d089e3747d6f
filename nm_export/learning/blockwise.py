"""Fit each block of the sparse model to the dense block, one after the other (arXiv 2509.22166, block-wise training).

Both blocks get the same inputs, which have come through the sparse blocks before. In memory are one block's gradients
and the inputs and targets of all sequences, on the model's own device for the batch at hand and on the host otherwise.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nm_export.calibration.processes import Processes
from nm_export.errors import NMExportError, UserError
from nm_export.learning.checkpoints import Checkpoints
from nm_export.learning.end_to_end import nothing_to_train
from nm_export.learning.optimiser import Optimiser
from nm_export.learning.report import LearningReport
from nm_export.learning.trainable import trainable
from nm_export.modeling.modeling_nm_sparse import NMSparseLinear
from nm_export.progress import steps as showing_steps
from nm_export.recipe import LearningSection


class _CaughtError(Exception):
    """Ends a forward pass as soon as the first block has been called."""


def learn_blockwise(
    model: Any,
    sequences: Tensor,
    held_out: Tensor,
    section: LearningSection,
    *,
    checkpoints: Checkpoints,
    processes: Processes,
) -> LearningReport:
    """Train the blocks of an `NMSparseForCausalLM` in place; a block that held-out text dislikes keeps its start.

    With several processes each goes through all sequences, and the passes of a step are dealt out among them.

    Args:
        model: calibrated sparse model.
        sequences: token ids, int64 `[samples, length]`.
        held_out: further sequences of the same length.
        section: what to train, and how.
        checkpoints: blocks that an earlier run finished, and where to leave those of this one.
        processes: others that train the same model.

    Raises:
        UserError: the model has nothing of what is to be trained, or the loss became NaN.
        NMExportError: the pruned linears do not belong to blocks that are called one after the other.
    """
    blocks = _blocks(model)
    inputs, calls = _first_inputs(model, blocks, sequences.split(section.batch_size))
    held_inputs, held_calls = _first_inputs(model, blocks, held_out.split(section.batch_size))
    losses: list[float] = []
    results: dict[str, tuple[float, float, bool]] = {}
    total = len(blocks) * section.epochs * (len(inputs) // section.gradient_accumulation)
    with showing_steps("Learning", total) as advance:
        for name, (block, linears) in blocks.items():
            saved = checkpoints.load(name)
            if saved is not None:
                block.load_state_dict(saved[0], strict=False)
                results[name] = tuple(saved[1]["held_out"])
                losses += saved[1]["losses"]
                for _ in saved[1]["losses"]:
                    advance("done before")
            elif linears:
                learner = _Block(model, block, linears, section, processes)
                train = list(zip(inputs, calls[name], strict=True))
                held = list(zip(held_inputs, held_calls[name], strict=True))
                results[name] = learner.fit(train, held, lambda loss, name=name: advance(f"{name} mse {loss:.3g}"))
                losses += learner.losses
                if processes.rank == 0:
                    changed = {k: v for k, v in block.state_dict().items() if learner.changes(k)}
                    checkpoints.save(name, changed, {"losses": learner.losses, "held_out": results[name]})
            with torch.no_grad():
                inputs = [_run(block, x, call).cpu() for x, call in zip(inputs, calls[name], strict=True)]
                held_inputs = [
                    _run(block, x, call).cpu() for x, call in zip(held_inputs, held_calls[name], strict=True)
                ]
    if not results:
        raise UserError(nothing_to_train(section))
    return LearningReport("blockwise", losses, results)


class _Block:
    """The training of one block."""

    def __init__(
        self,
        model: Any,
        block: nn.Module,
        linears: Mapping[str, NMSparseLinear],
        section: LearningSection,
        processes: Processes,
    ) -> None:
        self.model, self.block, self.linears = model, block, linears
        self.section, self.processes = section, processes
        self.losses: list[float] = []

    def changes(self, key: str) -> bool:
        """Whether a tensor of the block's state dict may have been trained."""
        return ".nm_" in key or ("weight" in self.section.parameters and key.removesuffix(".weight") in self._names())

    def _names(self) -> set[str]:
        return {name for name, module in self.block.named_modules() if isinstance(module, NMSparseLinear)}

    def fit(self, train: list[Any], held_out: list[Any], advance: Any) -> tuple[float, float, bool]:
        """Train; return the held-out loss before, after, and whether the training was kept."""
        section, count = self.section, self.section.gradient_accumulation
        with torch.no_grad(), self.model.dense():
            targets = [_run(self.block, x, call).cpu() for x, call in train]
            held_targets = [_run(self.block, x, call).cpu() for x, call in held_out]
        before = self._mean_loss(held_out, held_targets)
        steps = len(train) // count
        with trainable(
            self.block, self.linears, section.parameters, weight_rank=section.weight_rank, seed=section.seed
        ) as leaves:
            if not leaves:
                raise UserError(nothing_to_train(section))
            start = {name: leaf.detach().clone() for name, leaf in leaves.items()}
            optimiser = Optimiser(leaves, section, steps * section.epochs, self.processes)
            for epoch in range(section.epochs):
                order = torch.randperm(len(train), generator=torch.Generator().manual_seed(section.seed + epoch))
                for step in range(steps):
                    own = order[step * count : (step + 1) * count].tolist()[self.processes.rank :: self.processes.count]
                    loss = torch.zeros(1, dtype=torch.float64)
                    for index in own:
                        part = self._loss(train[index], targets[index]) / count
                        part.backward()
                        loss += part.detach().double().cpu()
                    optimiser.step()
                    self.losses.append(float(self.processes.gather(loss).sum()))
                    advance(self.losses[-1])
            after = self._mean_loss(held_out, held_targets)
            kept = after < before
            if not kept:
                with torch.no_grad():
                    for name, leaf in leaves.items():
                        leaf.copy_(start[name])
        return before, after, kept

    def _loss(self, call: Any, target: Tensor) -> Tensor:
        x, arguments = call
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.section.precision == "bfloat16"):
            output = _run(self.block, x, arguments)
        return F.mse_loss(output.float(), target.to(output.device).float())

    def _mean_loss(self, calls: list[Any], targets: list[Tensor]) -> float:
        with torch.no_grad():
            losses = [float(self._loss(call, target)) for call, target in zip(calls, targets, strict=True)]
        return sum(losses) / len(losses)


def _blocks(model: Any) -> dict[str, tuple[nn.Module, dict[str, NMSparseLinear]]]:
    """The decoder's blocks in order, each with its pruned linears, by the names of the blocks."""
    pruned = model.nm_modules()
    first = next(iter(pruned))
    path = re.match(r"(.*?)\.\d+\.", first)
    if path is None:
        raise NMExportError(f"{first} is not part of a list of blocks: use learning.mode end_to_end.")
    found = {}
    for index, block in enumerate(model.get_submodule(path[1])):
        prefix = f"{path[1]}.{index}."
        found[prefix[:-1]] = (block, {name: module for name, module in pruned.items() if name.startswith(prefix)})
    inside = sum(len(linears) for _, linears in found.values())
    if inside != len(pruned):
        raise NMExportError(f"Not every pruned linear is part of {path[1]}: use learning.mode end_to_end.")
    return found


def _first_inputs(
    model: Any, blocks: Mapping[str, tuple[nn.Module, Any]], batches: tuple[Tensor, ...]
) -> tuple[list[Tensor], dict[str, list[dict[str, Any]]]]:
    """The first block's input for each batch, and for each block the further arguments of its call for each batch.

    The arguments (masks, position embeddings) depend on the shape of a batch only, and are shared by equal shapes.
    """
    by_shape: dict[torch.Size, dict[str, dict[str, Any]]] = {}
    inputs = []
    first = next(iter(blocks.values()))[0]
    for batch in batches:
        caught: dict[str, dict[str, Any]] = {}
        hidden: list[Tensor] = []

        def note(
            name: str, caught: Any = caught, hidden: Any = hidden, whole: bool = batch.shape not in by_shape
        ) -> Any:
            def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if block is first:
                    hidden.append(args[0] if args else kwargs["hidden_states"])
                caught[name] = {key: value for key, value in kwargs.items() if key != "hidden_states"}
                if not whole:
                    raise _CaughtError

            return hook

        hooks = [b.register_forward_pre_hook(note(name), with_kwargs=True) for name, (b, _) in blocks.items()]
        try:
            with torch.no_grad():
                model.base_model(input_ids=batch.to(model.device), use_cache=False)
        except _CaughtError:
            pass
        finally:
            for handle in hooks:
                handle.remove()
        by_shape.setdefault(batch.shape, caught)
        inputs.append(hidden[0].cpu())
    return inputs, {name: [by_shape[batch.shape][name] for batch in batches] for name in blocks}


def _run(block: nn.Module, x: Tensor, arguments: dict[str, Any]) -> Tensor:
    device = next(block.parameters()).device
    output = block(x.to(device), **arguments)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result
