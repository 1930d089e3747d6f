"""Running many batches through a decoder one block at a time.

In between are the hidden states of all batches, one copy of them: no weight is needed twice, so that of a model that is
larger than memory each block is read once. Every block is called as a whole forward pass calls it, with the same bits.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nm_export.calibration.offload import placed
from nm_export.errors import UserError

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with besides the hidden states."""


class _CaughtError(Exception):
    """Ends a forward pass as soon as the first block has been called."""


def decoder_blocks(model: Any, hint: str) -> dict[str, nn.Module]:
    """Return the decoder's blocks by name, in the order in which they are called.

    Args:
        model: `NMSparseForCausalLM`.
        hint: what to do about a model without them, for the error.

    Raises:
        UserError: pruned linears do not belong to blocks that are called one after the other.
    """
    pruned = list(model.nm_modules())
    path = re.match(r"(.*?)\.\d+\.", pruned[0])
    if path is None:
        raise UserError(f"{pruned[0]} is not part of a list of blocks: {hint}.")
    outside = [name for name in pruned if not name.startswith(f"{path[1]}.")]
    if outside:
        raise UserError(f"{outside[0]} is pruned and not part of {path[1]}: {hint}.")
    return {f"{path[1]}.{index}": block for index, block in enumerate(model.get_submodule(path[1]))}


class BlockCalls:
    """The calls of a block with all batches of a text.

    Attributes:
        inputs: hidden states `[batch, length, hidden]` of each batch, on the host.
    """

    def __init__(self, model: Any, blocks: Mapping[str, nn.Module], batches: Sequence[Tensor]) -> None:
        # masks and position embeddings depend on the shape of a batch only, and are shared by equal shapes
        self._by_shape: dict[torch.Size, dict[str, _Arguments]] = {}
        self._shapes = [batch.shape for batch in batches]
        self.inputs: list[Tensor] = []
        for batch in batches:
            hidden, arguments = _first_call(model, blocks, batch, whole=batch.shape not in self._by_shape)
            known = self._by_shape.setdefault(batch.shape, arguments)
            first = next(iter(blocks))
            if not _equal(known[first], arguments[first]):
                raise UserError(
                    f"{first} depends on more of the text than hidden states: this model cannot run block by block. "
                    "Set calibration.block_by_block: false."
                )
            self.inputs.append(hidden.cpu())

    def __len__(self) -> int:
        return len(self.inputs)

    def run(self, name: str, block: nn.Module, index: int) -> Tensor:
        """Return the block's output for a batch, on the device where it was computed."""
        args, kwargs = self._by_shape[self._shapes[index]][name]
        device = next(block.parameters()).device
        x = self.inputs[index]
        output = block(x if device.type == "meta" else x.to(device), *args, **kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def outputs(self, name: str, block: nn.Module) -> list[Tensor]:
        """Return the block's outputs for all batches, on the host."""
        with torch.no_grad():
            return [self.run(name, block, index).cpu() for index in range(len(self))]

    def step(self, name: str, block: nn.Module, index: int) -> None:
        """Replace the input of a batch by the block's output: the input of the next block."""
        with torch.no_grad():
            self.inputs[index] = self.run(name, block, index).cpu()

    def go_through(self, name: str, block: nn.Module) -> None:
        """Take the step with all batches."""
        for index in range(len(self)):
            self.step(name, block, index)


def _first_call(
    model: Any, blocks: Mapping[str, nn.Module], batch: Tensor, *, whole: bool
) -> tuple[Tensor, dict[str, _Arguments]]:
    """The first block's input for a batch, and what blocks are called with besides: the first, or all if `whole`."""
    arguments: dict[str, _Arguments] = {}
    hidden: list[Tensor] = []

    def hook_for(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not arguments:
                hidden.append(args[0] if args else kwargs["hidden_states"])
            arguments[name] = args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"}
            if not whole:
                raise _CaughtError

        return hook

    hooks = [block.register_forward_pre_hook(hook_for(name), with_kwargs=True) for name, block in blocks.items()]
    try:
        with torch.no_grad():
            model.base_model(input_ids=placed(model, batch), use_cache=False)
    except _CaughtError:
        pass
    finally:
        for handle in hooks:
            handle.remove()
    return hidden[0], arguments


def _equal(one: Any, other: Any) -> bool:
    """Whether two arguments hold the same tensors; what is no tensor and no container of them is not looked at."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return isinstance(one, Tensor) == isinstance(other, Tensor)
