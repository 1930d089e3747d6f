"""The key-value cache of an ONNX graph, of which there are two kinds: see `nm_export.onnx.session.CACHE_KEY`."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

_GRANULE = 128  # tokens by which buffers grow at least


class ORTCache:
    """Keys and values of every layer, float32 `[batch, heads, capacity, head_size]`, filled up to a length.

    The same buffer is bound as a graph's `past_key_values` and as its `present`, so that attention appends to it and a
    step copies nothing of the past. Rows are packed to the left whatever side the caller pads: row `b` holds its own
    tokens at positions `0` to `length_b - 1`.
    """

    is_compileable = False

    def __init__(self, names: list[str], batch: int, heads: list[int], head_sizes: list[int]) -> None:
        self.names = names
        self.buffers = [torch.zeros(batch, h, 0, d) for h, d in zip(heads, head_sizes, strict=True)]
        self.length = 0  # tokens seen, padding included

    @classmethod
    def for_session(cls, session: Any, batch: int) -> "ORTCache":
        """An empty cache with one buffer for every `past_key_values` input of the session."""
        inputs = [i for i in session.get_inputs() if i.name.startswith("past_key_values")]
        return cls([i.name for i in inputs], batch, [i.shape[1] for i in inputs], [i.shape[3] for i in inputs])

    @property
    def capacity(self) -> int:
        """Tokens that fit into the buffers."""
        return self.buffers[0].shape[2]

    def bind(self, binding: Any, rows: slice) -> None:
        """Let the run of an `IOBinding` extend some rows, for whose tokens there is room."""
        for name, buffer in zip(self.names, self.buffers, strict=True):
            _bind(binding.bind_input, name, buffer[rows])
            _bind(binding.bind_output, _present(name), buffer[rows])

    def advance(self, length: int) -> None:
        """Note how many tokens there are in all, after the run."""
        self.length = length

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all; buffers at least double when they grow."""
        if length <= self.capacity:
            return
        capacity = -(-max(length, 2 * self.capacity) // _GRANULE) * _GRANULE
        for i, old in enumerate(self.buffers):
            batch, heads, filled, head_size = old.shape
            self.buffers[i] = torch.zeros(batch, heads, capacity, head_size)
            self.buffers[i][:, :, :filled] = old

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, padding included; the same for every layer."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row `i` continue what row `beam_idx[i]` holds."""
        self.buffers = [buffer.index_select(0, beam_idx) for buffer in self.buffers]


class ConcatenatedCache(ORTCache):
    """Keys and values of every layer, float32 `[batch, heads, length, head_size]`; a run writes longer ones elsewhere.

    Rows are padded as the caller pads them; a mask says where.
    """

    def reserve(self, length: int) -> None:
        """Make the tensors for `length` tokens in all that the next run fills."""
        self._longer = [torch.empty(*old.shape[:2], length, old.shape[3]) for old in self.buffers]

    def bind(self, binding: Any, rows: slice) -> None:
        """Let the run of an `IOBinding` read the cache of all rows and write the longer one."""
        for name, old, new in zip(self.names, self.buffers, self._longer, strict=True):
            _bind(binding.bind_input, name, old)
            _bind(binding.bind_output, _present(name), new)

    def advance(self, length: int) -> None:
        """Take over what the run has written."""
        self.buffers, self.length = self._longer, length


def _bind(bind: Any, name: str, tensor: Tensor) -> None:
    bind(name, "cpu", 0, np.float32, tensor.shape, tensor.data_ptr())


def _present(name: str) -> str:
    return name.replace("past_key_values", "present", 1)
