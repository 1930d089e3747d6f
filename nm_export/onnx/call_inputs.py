"""What a caller hands to a model -> checked tensors. Anything that ONNX Runtime would stumble over is refused here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nm_export.errors import UserError

if TYPE_CHECKING:
    from nm_export.onnx.cache import ORTCache

_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8}
_CARRIED = {"tokenizer", "assistant_tokenizer"}  # transformers carries them along with what `forward` takes
_FEW = 32  # tokens, below which Python is faster than torch; steps of generation are
_NO_LABEL = -100  # as transformers marks them


class InputError(UserError, ValueError):
    """An argument that a model or a session cannot take; a ValueError, as transformers and optimum raise it."""


def token_ids(value: Any, vocabulary: int, name: str = "input_ids") -> Tensor:
    """Return token ids as an int64 tensor on the CPU, `[rows, tokens]`, neither of them 0.

    Args:
        value: a tensor or NumPy array of integers of any size, or nested lists.
        vocabulary: number of tokens; ids are below it.
        name: what messages call it.

    Raises:
        InputError: anything else.
    """
    ids = value if isinstance(value, Tensor) else _tensor(value, name)
    if ids.dtype != torch.int64 or ids.device.type != "cpu":
        if ids.dtype not in _INTEGERS:
            raise InputError(f"{name} are integers, not {str(ids.dtype).removeprefix('torch.')}.")
        ids = ids.to("cpu", torch.int64)
    if ids.dim() != 2:
        raise InputError(
            f"{name} have the shape [rows, tokens], not {list(ids.shape)}: put one text into a batch of one."
        )
    if not ids.numel():
        raise InputError(f"{name} have the shape {list(ids.shape)}: there is no token in them.")
    low, high = _range(ids)
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        raise InputError(f"{name} hold {wrong}; the vocabulary has the tokens 0 to {vocabulary - 1}.")
    return ids


def _range(ids: Tensor) -> tuple[int, int]:
    if ids.numel() <= _FEW:
        values = [value for row in ids.tolist() for value in row]
        return min(values), max(values)
    low, high = torch.aminmax(ids)
    return int(low), int(high)


def token_mask(value: Any, name: str = "attention_mask") -> Tensor:
    """Return a mask of tokens as a bool tensor on the CPU, from numbers 0 and 1 or truth values, of any shape.

    Raises:
        InputError: other numbers, such as those that tell packed texts apart.
    """
    mask = value if isinstance(value, Tensor) else _tensor(value, name)
    if mask.dtype == torch.bool:
        return mask.cpu()
    mask, kept = mask.cpu(), mask.cpu() != 0
    if not torch.equal(mask, kept.to(mask.dtype)):
        raise InputError(f"{name} holds other numbers than 1 (a token) and 0 (padding).")
    return kept


def _tensor(value: Any, name: str) -> Tensor:
    if value is None:
        raise InputError(f"{name} are missing.")
    if isinstance(value, Mapping):
        raise InputError(f"{name} are a {type(value).__name__}; hand it over as keyword arguments: model(**inputs).")
    try:
        array = np.asarray(value)
        return torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else array.dtype))
    except (TypeError, ValueError) as error:  # text, rows of different lengths
        raise InputError(f"{name} are no numbers in rows of equal lengths ({type(value).__name__}).") from error


def new_tokens(attention_mask: Any, cache: "ORTCache", rows: int, tokens: int) -> Tensor | None:
    """Which of the tokens that follow a cache are no padding, bool `[rows, tokens]`; None if none is padding.

    Args:
        attention_mask: `[rows, cached + tokens]`.
        cache: what comes before; it knows its own padding, which the mask has to confirm.
        rows: number of texts.
        tokens: number of new tokens.

    Raises:
        InputError: another shape, other values than 0 and 1, or another number of cached tokens than there are.
    """
    held, total = cache.length, cache.length + tokens
    # a token on a cache: what is left out of the checks here was checked with the tokens before it
    step = held and tokens == 1 and isinstance(attention_mask, Tensor) and attention_mask.device.type == "cpu"
    mask = attention_mask if step else token_mask(attention_mask)
    if mask.shape != (rows, total):
        raise InputError(f"attention_mask is {tuple(mask.shape)}; {rows} rows of {total} tokens were expected.")
    marked = int(torch.count_nonzero(mask))
    if marked == rows * total and cache.mask is None:
        return None
    new = mask[:, held:]
    whole = bool(new.all())
    if not (step and whole and marked == rows * total - cache.all_padding):
        _check_past(mask[:, :held].bool(), cache)
    return None if whole else new.bool()


def _check_past(mask: Tensor, cache: "ORTCache") -> None:
    """Raise an InputError where a mask counts other tokens in a row than its cache."""
    rows = len(mask)
    if cache.length:
        said, held = mask.sum(dim=1), cache.counts(rows)
        if not torch.equal(said, held):
            row = int((said != held).nonzero()[0])
            raise InputError(
                f"attention_mask marks {int(said[row])} tokens of the cache in row {row}, where it holds "
                f"{int(held[row])}: a cache keeps the tokens that it was given."
            )


def same_positions(position_ids: Any, new: Tensor | None, cache: "ORTCache", rows: int, tokens: int) -> None:
    """Raise an InputError where positions are not those that follow from mask and cache, as in packed texts."""
    if position_ids is None:
        return
    given = torch.as_tensor(position_ids)
    kept = torch.ones(rows, tokens, dtype=torch.bool) if new is None else new
    follow = cache.counts(rows)[:, None] + kept.cumsum(dim=1) - 1
    if given.shape not in ((1, tokens), (rows, tokens)) or not torch.equal(given.expand(rows, -1)[kept], follow[kept]):
        raise InputError(
            "position_ids are not the places of the tokens that attention_mask counts: the graph numbers each row's "
            "tokens from 0, so give every text a row of its own."
        )


def refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """Raise an InputError for an argument of `forward` that would change what it computes; False and None would not."""
    for name, value in arguments.items():
        harmless = value is None or (value is False and name != "is_causal") or (value is True and name == "is_causal")
        if harmless or name in _CARRIED or (name == "token_type_ids" and not torch.as_tensor(value).any()):
            continue
        raise InputError(
            f"forward has no {name}: the graph computes logits from token ids and a mask, and nothing else."
        )


def causal_loss(
    logits: Tensor, labels: Any, new: Tensor | None, logits_to_keep: int | Tensor, num_items_in_batch: Any
) -> Tensor:
    """The loss that transformers computes: the mean cross entropy of each token's successor.

    Args:
        logits: float32 `[rows, tokens, vocabulary]`.
        labels: integers `[rows, tokens]`, -100 where the loss does not count.
        new: bool `[rows, tokens]`, False for padding; None if there is none.
        logits_to_keep: of the same call; only 0.
        num_items_in_batch: divide the sum by this number instead.

    Raises:
        InputError: another shape, or a label whose logits belong to padding.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    labels = (labels if isinstance(labels, Tensor) else _tensor(labels, "labels")).to("cpu", torch.int64)
    if labels.shape != logits.shape[:2]:
        raise InputError(f"labels have the shape {list(labels.shape)}, and input_ids {list(logits.shape[:2])}.")
    if not isinstance(logits_to_keep, int) or logits_to_keep:
        raise InputError("labels need the logits of all positions: leave logits_to_keep out.")
    if new is not None and (labels[:, 1:][~new[:, :-1]] != _NO_LABEL).any():
        raise InputError(
            "labels ask what follows padding, which has no logits: set them to -100 at padding and at the token behind."
        )
    loss: Tensor = ForCausalLMLoss(logits, labels, logits.shape[-1], num_items_in_batch=num_items_in_batch)
    return loss
