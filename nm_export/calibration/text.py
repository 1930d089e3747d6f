"""Text -> token sequences, for calibration and for held-out evaluation."""

import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from nm_export.arguments import named
from nm_export.calibration.columns import Render
from nm_export.calibration.documents import BUILTIN, load_text
from nm_export.errors import UserError
from nm_export.recipe import TextSection
from nm_export.tokenizer_files import beginning_of_text

__all__ = ["TokenSequences", "load_text", "read_sequences", "token_sequences"]

POOL_FACTOR = 8
"""The seeded choice is made among this many times the sequences asked for; the rest of a large text is not read."""

COUNTED = 2_000_000
"""Tokens after which `is_long_enough` stops counting."""

_BATCH_CHARACTERS = 1 << 18


@dataclass(frozen=True)
class TokenSequences:
    """Token sequences and where they come from."""

    input_ids: torch.Tensor
    """int64 [num_samples, sequence_length]; no padding."""

    provenance: dict[str, Any]
    """Dataset, split, seed, SHA-256 of the text that was read, numbers of documents and tokens. JSON values only."""


def token_sequences(tokenizer: PreTrainedTokenizerBase, section: TextSection) -> torch.Tensor:
    """Cut the section's text into int64 [num_samples, sequence_length]. See `read_sequences`."""
    return read_sequences(tokenizer, section).input_ids


def read_sequences(tokenizer: PreTrainedTokenizerBase, section: TextSection) -> TokenSequences:
    """Tokenize the section's text, cut it into sequences and choose `num_samples` of them with the section's seed.

    Documents are joined by the end-of-sequence token, if the tokenizer has one. Where the tokenizer starts texts with a
    beginning-of-sequence token, every sequence starts with it: such models have seen nothing else in training.
    Raises UserError with the counts when there is too little text.
    """
    if not isinstance(section, TextSection):
        raise UserError(f"token_sequences takes a tokenizer and a CalibrationSection, not {named(section)}.")
    if not callable(tokenizer):
        raise UserError(f"token_sequences takes a tokenizer of transformers, not {named(tokenizer)}.")
    prefix = beginning_of_text(tokenizer)
    body = section.sequence_length - len(prefix)
    needed = _needed(section, prefix)
    digest, documents, tokens = hashlib.sha256(), 0, 0
    parts: list[torch.Tensor] = []
    for batch in _batches(load_text(section, _renderer(tokenizer))):
        for text in batch:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        part = _encode(tokenizer, batch)
        parts.append(part)
        documents += len(batch)
        tokens += len(part)
        if tokens >= POOL_FACTOR * needed:
            break
    if tokens < needed:
        raise _too_short(section, tokens, needed)
    pool = torch.cat(parts)[: tokens // body * body].view(-1, body)
    chosen = torch.randperm(len(pool), generator=torch.Generator().manual_seed(section.seed))[: section.num_samples]
    first = torch.tensor(prefix, dtype=torch.int64).expand(section.num_samples, -1)
    provenance = {
        **section.model_dump(mode="json", include=set(TextSection.model_fields) - {"batch_size"}, exclude_none=True),
        "text_sha256": digest.hexdigest(),
        "documents": documents,
        "tokens": tokens,
    }
    if section.dataset == BUILTIN:
        provenance["python"] = ".".join(map(str, sys.version_info[:3]))  # the text differs between versions
    return TokenSequences(torch.cat([first, pool[chosen].long()], dim=1), provenance)


def is_long_enough(tokenizer: PreTrainedTokenizerBase, section: TextSection) -> bool:
    """Whether a text was seen to suffice for `read_sequences`; False where counting stopped before that was known.

    Raises UserError when it does not suffice, as `read_sequences` does.
    """
    needed = _needed(section, beginning_of_text(tokenizer))
    tokens = 0
    for batch in _batches(load_text(section, _renderer(tokenizer))):
        tokens += len(_encode(tokenizer, batch))
        if tokens >= needed:
            return True
        if tokens >= COUNTED:
            return False
    raise _too_short(section, tokens, needed)


def _needed(section: TextSection, prefix: list[int]) -> int:
    return section.num_samples * (section.sequence_length - len(prefix))


def _too_short(section: TextSection, tokens: int, needed: int) -> UserError:
    key = section.size_key
    return UserError(
        f"{key}: {section.dataset} (split {section.split}) has {tokens:,} tokens, but "
        f"{section.num_samples:,} sequences of {section.sequence_length:,} need {needed:,}; lower "
        f"{key}.num_samples or {key}.sequence_length, or give more text"
    )


def _renderer(tokenizer: PreTrainedTokenizerBase) -> Render | None:
    """What makes a text of a chat; None where the tokenizer has no template for it."""
    if not tokenizer.chat_template:
        return None
    return lambda messages: str(tokenizer.apply_chat_template(messages, tokenize=False))


def _encode(tokenizer: PreTrainedTokenizerBase, batch: list[str]) -> torch.Tensor:
    """int32 [tokens] of some documents, each followed by the end-of-sequence token."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(list(itertools.chain.from_iterable(ids + end for ids in encoded)), dtype=torch.int32)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Group documents by their length, so that the memory of tokenizing does not depend on the size of the text."""
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
