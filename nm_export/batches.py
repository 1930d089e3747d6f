"""Whatever holds token ids -> sequences without padding: the one reader of everything that takes tokens.

Padding is taken out before a model sees a token. So it cannot reach a statistic, a loss or a perplexity, and a padded
batch gives the same bits as its sequences alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nm_export.arguments import named
from nm_export.errors import UserError

_BY_PRODUCTS = ("token_type_ids", "special_tokens_mask", "offset_mapping", "length", "overflow_to_sample_mapping")
"""What tokenizers return beside ids and mask, and what says nothing about the tokens themselves."""

_NO_LABEL = -100  # transformers' mark of a token that has no label


class Tokens:
    """Token sequences, each a context of its own, without padding.

    Args:
        rows: token ids, int64 `[length]` each, of at least one token.
    """

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self.rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.rows)

    def __getitem__(self, part: slice) -> "Tokens":
        return Tokens(self.rows[part])

    @property
    def count(self) -> int:
        """Tokens in all sequences."""
        return sum(map(len, self.rows))

    @property
    def predicted(self) -> int:
        """Tokens that a model predicts: all but the first of each sequence."""
        return self.count - len(self)

    @property
    def are_of_one_length(self) -> bool:
        """Whether all sequences have as many tokens."""
        return len(set(map(len, self.rows))) == 1

    def shortened(self, length: int) -> "Tokens":
        """Return the first `length` tokens of each sequence."""
        return Tokens([row[:length] for row in self.rows])

    def shuffled(self, seed: int) -> "Tokens":
        """Return the sequences in an order that the seed decides."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        return Tokens([self.rows[index] for index in order])

    def batches(self, size: int) -> list[list[Tensor]]:
        """Deal the sequences out, `size` at a time and in order.

        Returns:
            For each batch int64 `[sequences, length]`, one tensor for each length in it.
        """
        batches = []
        for first in range(0, len(self), size):
            by_length: dict[int, list[Tensor]] = {}
            for row in self.rows[first : first + size]:
                by_length.setdefault(len(row), []).append(row)
            batches.append([torch.stack(rows) for rows in by_length.values()])
        return batches

    def split(self, size: int) -> list[Tensor]:
        """Return the tensors of all batches, int64 `[sequences, length]`, one after the other."""
        return [tensor for batch in self.batches(size) for tensor in batch]


def read_tokens(batches: Any, caller: str, *, predicting: bool = False) -> Tokens:
    """Read token ids in any of the forms that people have them in.

    Args:
        batches: an integer tensor or array `[samples, length]`; a list of sequences of any lengths, each a list of
            integers or a tensor `[length]`; what a tokenizer returns, or a mapping with `input_ids` and perhaps
            `attention_mask`, whose zeros are padding; or an iterable of such batches, a DataLoader for example, which
            is gone through once. Without a mask every token counts.
        caller: name of the function that was given them, for messages.
        predicting: whether tokens are to be predicted, so that one sequence at least must have two.

    Raises:
        UserError: they are something else, there are none, or a mask has zeros between tokens.
    """
    tokens = batches if isinstance(batches, Tokens) else Tokens(_checked_rows(batches, caller))
    if predicting and not tokens.predicted:
        raise UserError(f"{caller} needs a sequence of at least two tokens: the first one is not predicted.")
    return tokens


def _checked_rows(batches: Any, caller: str) -> list[Tensor]:
    if not isinstance(batches, (Mapping, str)) and _is_row(batches):
        raise UserError(
            f"{caller} was given a single sequence of {len(batches)} tokens; it takes [samples, length], so pass "
            "ids.unsqueeze(0), or [ids]."
        )
    rows = list(_rows(batches, caller))
    if any(row.dtype == torch.bool for row in rows):
        raise UserError(f"{caller} was given True and False, as in a mask; token ids are integers.")
    rows = [row.long() for row in rows]
    if not rows:
        raise UserError(f"{caller} was given no token sequences.")
    for number, row in enumerate(rows):
        if not len(row):
            raise UserError(f"{caller}: sequence {number} (from 0) has no tokens; leave it out.")
    return rows


def check_vocabulary(tokens: Tokens, model: Any, caller: str) -> Tokens:
    """Return the tokens if the model knows them all.

    Raises:
        UserError: a token is negative, or beyond the model's embeddings.
    """
    if not hasattr(model, "get_input_embeddings"):  # a graph
        return tokens
    known = model.get_input_embeddings().weight.shape[0]
    for row in tokens:
        low, high = int(row.min()), int(row.max())
        if low < 0 or high >= known:
            raise UserError(
                f"{caller} was given the token {low if low < 0 else high:,}, and the model knows the tokens 0 to "
                f"{known - 1:,}; give ids of the model's own tokenizer, and padding with its attention_mask."
            )
    return tokens


def _rows(batch: Any, caller: str) -> Iterator[Tensor]:
    if isinstance(batch, (str, bytes)):
        raise UserError(f'{caller} was given text; it takes token ids: tokenizer(text, return_tensors="pt").')
    if isinstance(batch, Mapping):
        yield from _rows_of_mapping(batch, caller)
    elif _is_row(batch):
        yield _integers(batch, caller)
    elif isinstance(batch, Tensor) or hasattr(batch, "__array__"):
        ids = _integers(batch, caller)
        if ids.dim() != 2:
            shape = ", ".join(map(str, ids.shape))
            raise UserError(f"{caller} was given a tensor [{shape}]; token ids are [samples, length].")
        yield from ids
    elif isinstance(batch, Iterable):
        for part in batch:
            if isinstance(part, (list, tuple)) and not part:
                yield torch.empty(0, dtype=torch.int64)
            else:
                yield from _rows(part, caller)
    else:
        raise UserError(
            f"{caller} was given {named(batch)}; it takes token ids: a tensor [samples, length], a list of sequences, "
            "what a tokenizer returns, or an iterable of these."
        )


def _rows_of_mapping(batch: Mapping[Any, Any], caller: str) -> Iterator[Tensor]:
    if "input_ids" not in batch:
        raise UserError(f"{caller} was given a mapping without input_ids (it has {', '.join(map(str, batch))}).")
    unknown = [key for key in batch if key not in ("input_ids", "attention_mask", "labels", *_BY_PRODUCTS)]
    if unknown:
        raise UserError(f"{caller} does not use {unknown[0]}; give input_ids and attention_mask only.")
    rows = _sequences(batch["input_ids"], caller)
    masks = [torch.ones_like(row) for row in rows]
    if batch.get("attention_mask") is not None:
        masks = _sequences(batch["attention_mask"], caller)
    if [len(row) for row in rows] != [len(mask) for mask in masks]:
        raise UserError(f"{caller}: attention_mask has another shape than input_ids.")
    labels = _sequences(batch["labels"], caller) if batch.get("labels") is not None else rows
    for row, mask, label in zip(rows, masks, labels, strict=True):
        if len(label) != len(row) or bool(((label != row) & (mask != 0) & (label != _NO_LABEL)).any()):
            raise UserError(f"{caller} predicts the tokens themselves, and the labels are others; leave labels out.")
        if bool(((label == _NO_LABEL) & (mask != 0)).any()):
            raise UserError(f"{caller} looks at every token that attention_mask keeps; leave labels out.")
        yield _without_padding(row, mask, caller)


def _sequences(ids: Any, caller: str) -> list[Tensor]:
    """The rows of one entry of a mapping, which may be those of a single example."""
    return [_integers(ids, caller)] if _is_row(ids) else list(_rows(ids, caller))


def _without_padding(row: Tensor, mask: Tensor, caller: str) -> Tensor:
    kept = mask.nonzero().flatten()
    if not len(kept):
        return row[:0]
    first, last = int(kept[0]), int(kept[-1])
    if last - first + 1 != len(kept):
        raise UserError(f"{caller}: attention_mask has zeros between tokens; only padding at the ends can be left out.")
    return row[first : last + 1]


def _is_row(value: Any) -> bool:
    """Whether this is a single sequence of integers."""
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        return len(value.shape) == 1
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(token, int) for token in value)


def _integers(values: Any, caller: str) -> Tensor:
    ids = values if isinstance(values, Tensor) else torch.as_tensor(values)
    if ids.is_floating_point() or ids.is_complex():
        raise UserError(f"{caller} was given {str(ids.dtype).removeprefix('torch.')} numbers; token ids are integers.")
    return ids
