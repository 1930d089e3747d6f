"""Tokenizers of exported folders: loaded without a question, saved without a trace of this machine."""

import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nm_export.modeling import NMSparseConfig

# How this machine happened to load the tokenizer; transformers writes it down as if it were a setting.
_LOCAL_KEYS = ("is_local", "local_files_only", "name_or_path")


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in `folder`, an exported one or any other."""
    config = None
    config_file = Path(folder, "config.json")
    if config_file.is_file() and json.loads(config_file.read_text(encoding="utf-8")).get("model_type") == "nm_sparse":
        # without a configuration transformers would look for one, and ask whether it may run the folder's code
        config = NMSparseConfig.from_pretrained(folder, local_files_only=True)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer into an existing folder."""
    tokenizer.save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    settings = json.loads(config_file.read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in _LOCAL_KEYS}
    config_file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def beginning_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the beginning-of-sequence token if the tokenizer puts it in front of a text (such models have seen nothing
    else in training), else nothing."""
    ids = tokenizer("a")["input_ids"]
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []
