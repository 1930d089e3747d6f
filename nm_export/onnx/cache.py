"""The key-value cache of an ONNX graph, of which there are two kinds: see `nm_export.onnx.session.CACHE_KEY`.

Both answer to what `generate` of transformers asks of a cache: to be cropped, reordered, repeated, and measured.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nm_export.onnx.call_inputs import InputError

_GRANULE = 128  # tokens by which buffers grow at least


class ORTCache:
    """Keys and values of every layer, float32 `[rows, heads, capacity, head_size]`, filled up to a length.

    The same buffer is bound as a graph's `past_key_values` and as its `present`, so that attention appends to it and a
    step copies nothing of the past. Rows are packed to the left whatever side the caller pads: row `b` holds its own
    tokens at positions `0` to `length_b - 1`.

    Attributes:
        names: the graph's inputs, in turn.
        shapes: heads and head size of each.
        buffers: one tensor for each; none before the first call decides about the number of rows.
        length: tokens seen, padding included.
        mask: bool `[rows, columns]`, which of the first of them are no padding; None while there has been none. All
            that come later are tokens.
        padding: int64 `[rows]`, how many of them are padding; None while there has been none.
    """

    is_compileable = False
    is_croppable = True

    def __init__(self, names: list[str], shapes: tuple[tuple[int, int], ...]) -> None:
        self.names, self.shapes = names, shapes
        self.reset()

    @classmethod
    def for_session(cls, session: Any) -> "ORTCache":
        """An empty cache with a place for every `past_key_values` input of the session."""
        inputs = [i for i in session.get_inputs() if i.name.startswith("past_key_values")]
        return cls([i.name for i in inputs], tuple((i.shape[1], i.shape[3]) for i in inputs))

    def reset(self) -> None:
        """Forget everything."""
        self.buffers: list[Tensor] = []
        self.length = 0
        self._note_padding(None)

    @property
    def rows(self) -> int | None:
        """Number of rows; None before the first call."""
        return len(self.buffers[0]) if self.buffers else None

    @property
    def capacity(self) -> int:
        """Tokens that fit into the buffers."""
        return self.buffers[0].shape[2] if self.buffers else 0

    def counts(self, rows: int) -> Tensor:
        """Tokens that each row holds, padding not included, int64 `[rows]`."""
        return torch.full((rows,), self.length) if self.padding is None else self.length - self.padding

    def _note_padding(self, mask: Tensor | None) -> None:
        """Take a mask of the first columns; what every step asks of it is computed once."""
        self.mask = mask
        self.padding = None if mask is None else (~mask).sum(dim=1)
        self.all_padding = 0 if self.padding is None else int(self.padding.sum())
        self.least_padding = 0 if self.padding is None else int(self.padding.min())

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for `tokens` more in each of the rows; buffers at least double when they grow."""
        length = self.length + tokens
        if length <= self.capacity:
            return
        capacity = -(-max(length, 2 * self.capacity) // _GRANULE) * _GRANULE
        grown = [torch.zeros(rows, heads, capacity, size) for heads, size in self.shapes]
        for new, old in zip(grown, self.buffers, strict=False):
            new[:, :, : old.shape[2]] = old
        self.buffers = grown

    def bind(self, binding: Any) -> None:
        """Let the run of an `IOBinding` extend the rows, for whose tokens there is room."""
        for name, buffer in zip(self.names, self.buffers, strict=True):
            _bind(binding.bind_input, name, buffer)
            _bind(binding.bind_output, _present(name), buffer)

    def advance(self, rows: int, tokens: int, new: Tensor | None) -> None:
        """Note what a run has added: `tokens` in each row, those that are padding False in `new`, if there are any."""
        if new is not None:
            before = torch.ones(rows, self.length, dtype=torch.bool)
            if self.mask is not None:
                before[:, : self.mask.shape[1]] = self.mask
            self._note_padding(torch.cat([before, new], dim=1))
        self.length += tokens

    def row(self, index: int) -> "ORTCache":
        """One row as a cache of its own, without its padding, that extends the same memory; see `put`."""
        one = copy.copy(self)
        one.buffers = [buffer[index : index + 1] for buffer in self.buffers]
        one.length = int(self.counts(index + 1)[index])
        one._note_padding(None)
        return one

    def put(self, index: int, one: "ORTCache", columns: Tensor) -> None:
        """Take a row back after a run, whose new tokens stand in some columns: it lies where it was."""

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens: `-n` of them, as transformers counts; 0 forgets nothing.

        Raises:
            InputError: a positive number, or more than there are.
        """
        if not -self.length <= tokens_to_remove <= 0:
            raise InputError(
                f"crop({tokens_to_remove}): give minus the number of tokens to forget, at most {self.length}."
            )
        self.length += tokens_to_remove
        if self.mask is not None and self.length < self.mask.shape[1]:
            self._note_padding(self.mask[:, : self.length])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row `i` continue what row `beam_idx[i]` holds."""
        self.buffers = [buffer.index_select(0, beam_idx) for buffer in self.buffers]
        if self.mask is not None:
            self._note_padding(self.mask.index_select(0, beam_idx))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, in another order or several times."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Hold every row several times, one copy beside the other."""
        if self.rows is not None:
            self.reorder_cache(torch.arange(self.rows).repeat_interleave(repeats))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, padding included; the same for every layer."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: the cache grows."""
        return -1

    def activate_past_recording(self) -> None:
        """Nothing to do: every token is kept, so that `crop` can go back to any."""


class ConcatenatedCache(ORTCache):
    """Keys and values of every layer, float32 `[rows, heads, length, head_size]`; a run writes longer ones elsewhere.

    Rows are padded as the caller padded them call by call; `mask` says where.
    """

    def reserve(self, rows: int, tokens: int) -> None:
        """Make the tensors that the next run fills, longer by `tokens`."""
        if not self.buffers:
            self.buffers = [torch.zeros(rows, heads, 0, size) for heads, size in self.shapes]
        self._longer = [torch.empty(*old.shape[:2], self.length + tokens, old.shape[3]) for old in self.buffers]

    def bind(self, binding: Any) -> None:
        """Let the run of an `IOBinding` read the cache and write the longer one."""
        for name, old, new in zip(self.names, self.buffers, self._longer, strict=True):
            _bind(binding.bind_input, name, old)
            _bind(binding.bind_output, _present(name), new)

    def advance(self, rows: int, tokens: int, new: Tensor | None) -> None:
        """Take over what the run has written."""
        super().advance(rows, tokens, new)
        self.buffers = self._longer

    def row(self, index: int) -> "ORTCache":
        """One row as a cache of its own, its padding left where it is; see `put`."""
        one = super().row(index)
        one.length = self.length
        one._note_padding(None if self.mask is None else self.mask[index : index + 1])
        return one

    def put(self, index: int, one: ORTCache, columns: Tensor) -> None:
        """Take a row back after a run: its new tokens go into some columns, zeros into the others."""
        for longer, written in zip(self._longer, one.buffers, strict=True):
            row = longer[index]
            row[:, : self.length] = written[0, :, : self.length]
            row[:, self.length :] = 0
            row[:, self.length + columns] = written[0, :, self.length :]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, as `ORTCache.crop` does; ONNX Runtime wants the rest without gaps in memory."""
        super().crop(tokens_to_remove)
        self.buffers = [buffer[:, :, : self.length].contiguous() for buffer in self.buffers]


def _bind(bind: Any, name: str, tensor: Tensor) -> None:
    bind(name, "cpu", 0, np.float32, tensor.shape, tensor.data_ptr())


def _present(name: str) -> str:
    return name.replace("past_key_values", "present", 1)
