"""Runs of a graph on a cache, whatever side rows are padded on: each row gives what it gives alone."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nm_export.onnx.cache import ConcatenatedCache, ORTCache


class GraphRunner:
    """A session of a graph that `export_onnx` wrote, and what it needs to know of its model."""

    def __init__(self, session: Any, vocabulary: int, *, phased: bool) -> None:
        """Take a session.

        Args:
            session: an onnxruntime.InferenceSession.
            vocabulary: size of the logits' last axis.
            phased: whether some linears prune calls of one token otherwise than calls of several.
        """
        self._session, self._vocabulary, self._phased = session, vocabulary, phased

    def run(self, ids: Tensor, new: Tensor | None, cache: ORTCache) -> Tensor:
        """Compute the logits of some tokens, and extend the cache by them.

        Args:
            ids: int64 `[rows, tokens]`.
            new: bool, of the same shape, False for padding; None if there is none.
            cache: what the tokens continue.

        Returns:
            Float32 `[rows, tokens, vocabulary]`, those of padding without meaning.
        """
        rows, tokens = ids.shape
        cache.reserve(rows, tokens)
        if self._wants_single_rows(rows, tokens, new, cache):
            logits = self._run_rows(ids, torch.ones_like(ids, dtype=torch.bool) if new is None else new, cache)
        elif new is None or isinstance(cache, ConcatenatedCache):
            logits = self._run(ids, _mask(rows, tokens, new, cache), cache)
        else:
            logits = self._run_packed(ids, new, cache)
        cache.advance(rows, tokens, new)
        return logits

    def _wants_single_rows(self, rows: int, tokens: int, new: Tensor | None, cache: ORTCache) -> bool:
        """Whether rows have to run one by one, each with its own number of tokens.

        Attention that extends buffers takes several tokens on a cache for one row only, and rows without a token not
        at all. A row of one token is pruned as a call of one token.
        """
        extends = not isinstance(cache, ConcatenatedCache)
        if extends and cache.length and tokens > 1 and rows > 1:
            return True
        if new is None:
            return False
        counts = new.sum(dim=1)
        if extends and (cache.length or not counts.all()):
            return True
        return self._phased and tokens > 1 and bool((counts == 1).any())

    def _run_packed(self, ids: Tensor, new: Tensor, cache: ORTCache) -> Tensor:
        """Run prompts in a graph that wants every row's tokens first and its padding last."""
        counts = new.sum(dim=1)
        width = int(counts.max())
        order = (~new).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        mask = torch.arange(width)[None] < counts[:, None]
        packed = self._run(ids.gather(1, order), mask.long(), cache)
        logits = torch.zeros(*ids.shape, self._vocabulary)
        return logits.scatter_(1, order[..., None].expand_as(packed), packed)

    def _run_rows(self, ids: Tensor, new: Tensor, cache: ORTCache) -> Tensor:
        """Run one row after the other; those without a token are left out."""
        logits = torch.zeros(*ids.shape, self._vocabulary)
        for index, chosen in enumerate(new):
            columns = chosen.nonzero()[:, 0]
            one, tokens = cache.row(index), len(columns)
            if tokens:
                one.reserve(1, tokens)
                logits[index, columns] = self._run(ids[index : index + 1, columns], _mask(1, tokens, None, one), one)[0]
                one.advance(1, tokens, None)
            cache.put(index, one, columns)
        return logits

    def _run(self, ids: Tensor, mask: Tensor, cache: ORTCache) -> Tensor:
        """Run the graph on all rows of a cache: ids int64 `[rows, tokens]`, mask int64 `[rows, cached + tokens]`."""
        ids = ids.contiguous()
        logits = torch.empty(*ids.shape, self._vocabulary)
        binding = self._session.io_binding()
        binding.bind_input("input_ids", "cpu", 0, np.int64, ids.shape, ids.data_ptr())
        binding.bind_input("attention_mask", "cpu", 0, np.int64, mask.shape, mask.data_ptr())
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.data_ptr())
        cache.bind(binding)
        self._session.run_with_iobinding(binding)
        return logits


def _mask(rows: int, tokens: int, new: Tensor | None, cache: ORTCache) -> Tensor:
    """The mask that a graph wants, int64: 1 for tokens and 0 for padding.

    `[rows, cached + tokens]`, as they stand in a cache that is concatenated; rows that are packed to the left (all of
    whose new tokens are tokens) are as wide as the longest.
    """
    length = cache.length
    if new is None and cache.mask is None:
        return torch.ones(rows, length + tokens, dtype=torch.int64)
    if not isinstance(cache, ConcatenatedCache):
        lengths = cache.counts(rows) + tokens
        return (torch.arange(length + tokens - cache.least_padding)[None] < lengths[:, None]).long()
    mask = torch.ones(rows, length + tokens, dtype=torch.int64)
    if cache.mask is not None:
        mask[:, : cache.mask.shape[1]] = cache.mask
    if new is not None:
        mask[:, length:] = new
    return mask
