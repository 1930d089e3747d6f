"""Fit each block of the sparse model to the dense block, one after the other (arXiv 2509.22166, block-wise training).

Both blocks get the same inputs, which have come through the sparse blocks before. In memory are one block's gradients
and the inputs and targets of all sequences, on the model's own device for the batch at hand and on the host otherwise.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nm_export.batches import Tokens
from nm_export.calibration.blocks import BlockCalls, decoder_blocks
from nm_export.calibration.processes import Processes
from nm_export.learning.agreement import load_everywhere, of_first
from nm_export.learning.checkpoints import Checkpoints
from nm_export.learning.optimiser import Optimiser
from nm_export.learning.report import HeldOut, LearningReport
from nm_export.learning.trainable import is_trainable, trainable
from nm_export.modeling.modeling_nm_sparse import NMSparseLinear
from nm_export.progress import steps as showing_steps
from nm_export.recipe import LearningSection


def learn_blockwise(
    model: Any,
    sequences: Tokens,
    held_out: Tokens,
    section: LearningSection,
    *,
    checkpoints: Checkpoints,
    processes: Processes,
) -> LearningReport:
    """Train the blocks of an `NMSparseForCausalLM` in place; a block that held-out text dislikes keeps its start.

    With several processes each goes through all sequences, and the passes of a step are dealt out among them. Blocks
    that Accelerate offloads are loaded for each pass.

    Args:
        model: calibrated sparse model.
        sequences: token sequences.
        held_out: further ones.
        section: what to train, and how.
        checkpoints: blocks that an earlier run finished, and where to leave those of this one.
        processes: others that train the same model.

    Raises:
        UserError: the loss became NaN, or pruned linears do not belong to blocks that are called one after the other.
    """
    blocks = _blocks(model, section)
    modules = {name: block for name, (block, _) in blocks.items()}
    text = BlockCalls(model, modules, sequences.split(section.batch_size))
    held_text = BlockCalls(model, modules, held_out.split(section.batch_size))
    batches = _numbered(sequences.batches(section.batch_size))
    losses: list[float] = []
    results: dict[str, HeldOut] = {}
    steps = section.epochs * (len(batches) // section.gradient_accumulation)
    with showing_steps("Learning", steps * sum(bool(linears) for _, linears in blocks.values())) as advance:
        for name, (block, linears) in blocks.items():
            saved = load_everywhere(checkpoints, name, processes) if linears else None
            if saved is not None:
                block.load_state_dict(saved[0], strict=False)
                results[name] = HeldOut(*saved[1]["held_out"])
                losses += saved[1]["losses"]
                for _ in saved[1]["losses"]:
                    advance("done before")
            elif linears:
                learner = _Block(model, name, block, linears, section, processes)
                results[name] = learner.fit(text, batches, held_text, advance)
                losses += learner.losses
                if processes.rank == 0:
                    checkpoints.save(name, learner.state(), {"losses": learner.losses, "held_out": results[name]})
            text.go_through(name, block)
            held_text.go_through(name, block)
    return LearningReport("blockwise", losses, results)


class _Block:
    """The training of one block.

    Attributes:
        losses: of each step.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        block: nn.Module,
        linears: Mapping[str, NMSparseLinear],
        section: LearningSection,
        processes: Processes,
    ) -> None:
        self.model, self.name, self.block, self.linears = model, name, block, linears
        self.section, self.processes = section, processes
        self.losses: list[float] = []

    def state(self) -> dict[str, Tensor]:
        """The tensors of the block's state dict that may have been trained."""
        weights = {f"{name.removeprefix(f'{self.name}.')}.weight" for name in self.linears}
        trained = weights if "weight" in self.section.parameters else set()
        return {key: value for key, value in self.block.state_dict().items() if ".nm_" in key or key in trained}

    def fit(
        self,
        text: BlockCalls,
        batches: Sequence[Sequence[tuple[int, float]]],
        held_out: BlockCalls,
        advance: Callable[[str], None],
    ) -> HeldOut:
        """Train; `batches` are the numbers of the text's calls, and the share of each in its batch."""
        section = self.section
        with self.model.dense():
            targets = text.outputs(self.name, self.block)
            held_targets = held_out.outputs(self.name, self.block)
        before = self._mean_loss(held_out, held_targets)
        with trainable(
            self.block, self.linears, section.parameters, weight_rank=section.weight_rank, seed=section.seed
        ) as leaves:
            steps = list(self._steps(len(batches)))
            optimiser = Optimiser(leaves, section, len(steps), self.processes)
            for step in steps:
                loss = torch.zeros(1, dtype=torch.float64)
                for batch in step[self.processes.rank :: self.processes.count]:
                    for index, share in batches[batch]:
                        part = self._loss(text, index, targets[index]) * share / len(step)
                        part.backward()
                        loss += part.detach().double().cpu()
                optimiser.step()
                self.losses.append(float(self.processes.gather(loss).sum()))
                advance(f"{self.name} mse {self.losses[-1]:.3g}")
            before, after = of_first(self.processes, before, self._mean_loss(held_out, held_targets))
            kept = after < before
            if not kept:
                leaves.reset()
        return HeldOut(before, after, kept)

    def _steps(self, batches: int) -> Iterator[list[int]]:
        """The batches of each step; those of an epoch that do not fill a step are left out."""
        count = self.section.gradient_accumulation
        for epoch in range(self.section.epochs):
            generator = torch.Generator().manual_seed(self.section.seed + epoch)
            order = torch.randperm(batches, generator=generator).tolist()
            for first in range(0, batches - count + 1, count):
                yield order[first : first + count]

    def _loss(self, text: BlockCalls, index: int, target: Tensor) -> Tensor:
        linear = next(iter(self.linears.values()))
        # an offloaded weight is nowhere between two passes; what is trained is where the block computes
        device = next(tensor.device for tensor in (linear.weight, *linear.buffers()) if not tensor.is_meta)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.section.precision == "bfloat16"):
            output = text.run(self.name, self.block, index)
        return F.mse_loss(output.float(), target.to(output.device).float())

    def _mean_loss(self, text: BlockCalls, targets: list[Tensor]) -> float:
        """Mean over all elements, whatever the sizes of the batches."""
        with torch.no_grad():
            losses = [float(self._loss(text, index, target)) for index, target in enumerate(targets)]
        length = targets[0].shape[1]  # windows of this length weigh 1
        weights = [target.shape[0] * target.shape[1] / length for target in targets]
        return sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)


def _numbered(batches: Sequence[Sequence[Tensor]]) -> list[list[tuple[int, float]]]:
    """The calls of each batch by their number among all, and the share of each in the tokens of its batch."""
    number = itertools.count()
    return [[(next(number), ids.numel() / sum(i.numel() for i in batch)) for ids in batch] for batch in batches]


def _blocks(model: Any, section: LearningSection) -> dict[str, tuple[nn.Module, dict[str, NMSparseLinear]]]:
    """The decoder's blocks in order, each with its linears that have something to train, by the names of the blocks."""
    pruned = model.nm_modules()
    return {
        path: (
            block,
            {
                name: module
                for name, module in pruned.items()
                if name.startswith(f"{path}.") and is_trainable(module, section.parameters)
            },
        )
        for path, block in decoder_blocks(model, "use learning.mode end_to_end").items()
    }
