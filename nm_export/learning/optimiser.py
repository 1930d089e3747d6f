"""AdamW over the leaves, with the recipe's schedule, that can be stopped and continued."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import get_scheduler

from nm_export.calibration.processes import Processes
from nm_export.errors import UserError
from nm_export.recipe import LearningSection

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class Optimiser:
    """AdamW, its learning-rate schedule and gradient clipping.

    Args:
        leaves: float32 tensors that require gradients, by name.
        section: learning rate, schedule and so on.
        steps: number of steps in all.
        processes: others that train the same leaves on other batches; gradients are added up in the order of ranks.
    """

    def __init__(
        self, leaves: Mapping[str, Tensor], section: LearningSection, steps: int, processes: Processes
    ) -> None:
        self.leaves = dict(leaves)
        self.max_norm = section.max_grad_norm
        self.processes = processes
        rates = {False: section.learning_rate, True: section.weight_learning_rate or section.learning_rate}
        groups = [
            {"params": [leaf for name, leaf in leaves.items() if _is_factor(name) == factors], "lr": rate}
            for factors, rate in rates.items()
        ]
        self.adam = torch.optim.AdamW(
            [group for group in groups if group["params"]], betas=section.betas, weight_decay=section.weight_decay
        )
        warmup = round(section.warmup_ratio * steps)
        self.schedule = get_scheduler(_SCHEDULES[section.schedule], self.adam, warmup, steps)

    def step(self) -> None:
        """Use the gradients that have been added up, and clear them.

        Raises:
            UserError: a gradient is NaN or infinite.
        """
        if self.processes.count > 1:
            self._combine()
        norm = torch.nn.utils.clip_grad_norm_(self.leaves.values(), self.max_norm)
        if not norm.isfinite():
            raise UserError("Learning diverged (gradients are NaN or infinite); lower learning.learning_rate.")
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.schedule.step()

    def state(self) -> dict[str, Tensor]:
        """Everything that a later `load` needs to go on, on the CPU: leaves and moments."""
        tensors = {name: leaf.detach().cpu() for name, leaf in self.leaves.items()}
        for name, leaf in self.leaves.items():
            for word, value in self.adam.state[leaf].items():
                tensors[f"{name}.{word}"] = value.cpu()
        return tensors

    def load(self, tensors: Mapping[str, Tensor], steps_done: int) -> None:
        """Go back to where `state` was taken, after so many steps."""
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(tensors[name])
                moments = {key.removeprefix(f"{name}."): key for key in tensors if key.startswith(f"{name}.")}
                self.adam.state[leaf] = {
                    word: tensors[key] if word == "step" else tensors[key].to(leaf.device)
                    for word, key in moments.items()
                }
        self.schedule.last_epoch = steps_done
        for group, base, factor in zip(
            self.adam.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(steps_done)

    def _combine(self) -> None:
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self.leaves.values()]
        total = self.processes.gather(torch.cat([grad.flatten().double().cpu() for grad in grads])).sum(dim=0)
        for leaf, part in zip(self.leaves.values(), total.split([grad.numel() for grad in grads]), strict=True):
            leaf.grad = part.to(leaf.device, leaf.dtype).reshape(leaf.shape)


def _is_factor(name: str) -> bool:
    """Whether a leaf is a factor of a low-rank product; such start small and need larger steps."""
    return name.rpartition(".")[2] in ("update_in", "update_out", "nm_residual_in", "nm_residual_out")
