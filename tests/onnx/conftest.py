"""A tokenizer and exported tiny models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from nm_export.onnx import ExportResult, export_onnx
from tests.onnx.tiny import METHODS, VOCABULARY, sparse


@dataclass(frozen=True)
class Published:
    model: Any
    folder: Path
    result: ExportResult


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["<pad>", "<s>", "</s>", *sorted(ByteLevel.alphabet())][:VOCABULARY]
    raw = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def publish(tmp_path_factory, tokenizer_dir):
    """Calibrate, save and export a tiny model; one folder for each combination of arguments."""
    made: dict[Any, Published] = {}

    def published(
        architecture: str = "llama", method: str = "weight_norm", kernel: str = "auto", precision: str = "fp32"
    ) -> Published:
        key = architecture, method, kernel, precision
        if key not in made:
            folder = tmp_path_factory.mktemp("-".join(key).replace(", ", "-"))
            model = sparse(architecture, **METHODS[method])
            model.save_pretrained(folder)
            PreTrainedTokenizerFast.from_pretrained(tokenizer_dir).save_pretrained(folder)
            result = export_onnx(
                model,
                folder,
                tokenizer_dir=folder,
                kernel=kernel,
                precision=precision,
                metadata={"recipe_sha256": "0" * 64},
            )
            made[key] = Published(model, folder, result)
        return made[key]

    return published


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    """A machine on which the compiled operators are not installed."""
    monkeypatch.setenv("NM_EXPORT_OPS_LIBRARY", str(tmp_path / "missing.so"))


@pytest.fixture(autouse=True)
def few_threads():
    torch.set_num_threads(1)
