"""Tokenizers of exported folders: loaded without a question, saved without a trace of this machine."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nm_export.errors import UserError
from nm_export.json_files import read_json_object
from nm_export.library_errors import reason
from nm_export.modeling import NMSparseConfig

# How this machine happened to load the tokenizer; transformers writes it down as if it were a setting.
_LOCAL_KEYS = ("is_local", "local_files_only", "name_or_path")

_LARGEST_ID = 2**31 - 1  # as token sequences hold them


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in `folder`, an exported one or any other.

    Raises:
        UserError: there is none, or it is damaged.
    """
    config = None
    config_file = Path(folder, "config.json")
    if config_file.is_file() and read_json_object(config_file).get("model_type") == "nm_sparse":
        # without a configuration transformers would look for one, and ask whether it may run the folder's code
        with _explained(str(folder)):
            config = NMSparseConfig.from_pretrained(folder, local_files_only=True)
    return open_tokenizer(folder, str(folder), config=config)


def open_tokenizer(folder: str | Path, where: str, **options: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer in `folder` and try it.

    Args:
        folder: a model folder.
        where: it in a few words, for messages.
        options: for `AutoTokenizer.from_pretrained`.

    Raises:
        UserError: there is none, it is damaged, or it knows no words.
    """
    with _explained(where):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
        templates = tokenizer.chat_template
        if isinstance(templates, dict):
            for name in templates:  # they become file names
                if Path(name).name != name or "\\" in name:
                    raise ValueError(f"a chat template has the name {name[:80]!r}")
        elif not isinstance(templates, str | None):
            raise ValueError("its chat template is no text")
        if not isinstance(tokenizer.model_max_length, int | float):
            raise ValueError(f"model_max_length is {tokenizer.model_max_length!r:.80}")
        if max(tokenizer.get_vocab().values(), default=0) > _LARGEST_ID:
            raise ValueError("its vocabulary has absurd token ids")
        ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError(f"the tokenizer of {where} knows no words; are its files missing?")
    return tokenizer


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn whatever tokenizer libraries raise within the block into a UserError."""
    try:
        yield
    except BaseException as error:
        # a failed assertion in Rust is no Exception, so that nobody catches it by accident
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"the tokenizer of {where} cannot be loaded: {reason(error)}") from error


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer into an existing folder; texts of a batch are padded on the left, as they are continued."""
    tokenizer.save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    settings = json.loads(config_file.read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in _LOCAL_KEYS}
    settings["padding_side"] = "left"
    config_file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def beginning_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the beginning-of-sequence token if the tokenizer puts it in front of a text (such models have seen nothing
    else in training), else nothing."""
    ids = tokenizer("a")["input_ids"]
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []
