"""Make a golden folder: `python -m tests.golden.make tests/golden/v1`.

A golden folder belongs to the version that made it and is never made again: later versions must load it to the same
logits.
"""

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from nm_export import load_exported, pipeline
from nm_export.verification.modules import capture_inputs, record_modules
from tests.conftest import MIXED
from tests.tiny_folder import SIZES, tiny_recipe, write_tiny_folder

TOKENS = 8


def main(destination: Path) -> None:
    """Write `destination/model` and `destination/expected.safetensors`."""
    destination = destination.resolve()
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        sizes: dict[str, Any] = {**SIZES, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
        write_tiny_folder(Path("tiny"), LlamaConfig(**sizes, head_dim=16, tie_word_embeddings=True))
        pipeline.run(tiny_recipe(Path("tiny"), sparsity=MIXED), output_dir=destination / "model")
    save_file(expected(destination / "model"), destination / "expected.safetensors")


def expected(folder: Path) -> dict[str, torch.Tensor]:
    """`ids`, `logits`, and of every pruned linear `NAME#input`, `NAME#kept` (bool) and `NAME#output`."""
    model, _, _ = load_exported(folder)
    ids = torch.randint(0, 96, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    inputs = capture_inputs(model, ids)
    tensors = {"ids": ids}
    with torch.no_grad():
        tensors["logits"] = model(ids).logits
    for name, record in record_modules(model, inputs).items():
        tensors[f"{name}#input"] = inputs[name].clone()
        tensors[f"{name}#kept"], tensors[f"{name}#output"] = record.kept, record.output
    return tensors


if __name__ == "__main__":
    main(Path(sys.argv[1]))
