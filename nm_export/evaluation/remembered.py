"""A dense model that is asked about the same windows again and again."""

from typing import Any

import torch
from torch import Tensor


class RememberedLogits:
    """Logits of a transformers causal language model, which runs once for each batch of windows.

    Logits of a large vocabulary are too big to keep, so the last hidden states are kept (28 MB for 24 windows of 512
    tokens and 576 channels in float32) and only the output embedding is computed again. Where the logits are more than
    that product (a soft cap, a scale), the model runs every time.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._hidden: dict[tuple[torch.Size, bytes], Tensor] = {}

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        """Return the logits `[B, L, V]` of ids int64 `[B, L]`, on the CPU, the same bits every time."""
        key = (ids.shape, ids.numpy(force=True).tobytes())
        head = self._model.get_output_embeddings()
        if key in self._hidden:
            remembered: Tensor = head(self._hidden[key])
            return remembered.cpu()
        seen: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits: Tensor = self._model(input_ids=ids.to(self._model.device), use_cache=False).logits
        finally:
            hook.remove()
        if len(seen) == 1 and torch.equal(head(seen[0]), logits):
            self._hidden[key] = seen[0]
        return logits.cpu()
