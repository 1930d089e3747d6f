"""A tiny model as a folder, and that model exported once for all tests that only look at it."""

from pathlib import Path

import pytest
import torch

from nm_export import pipeline
from tests.tiny_folder import tiny_recipe, write_tiny_folder

# Every kind of parameter at once; q, k and v differ, so that they cannot share a selection.
MIXED = {
    "pattern": "8:16",
    "score": "weight_norm",
    "shift": "static_channel",
    "overrides": [
        {"modules": "*.k_proj", "pattern": "2:4", "shift": "dynamic_mean", "variance_correction": True},
        {"modules": "*.v_proj", "pattern": "3:8", "score": "magnitude", "shift": "dynamic_median"},
        {"modules": "*.down_proj", "shift": "static_scalar", "score_exponent": 2.0},
        {"modules": "model.layers.1.mlp.*", "phase": "prefill"},
        {"modules": "model.layers.1.self_attn.o_proj", "dense": True},
    ],
}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny products are slower on several threads, and tests run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory) -> Path:
    """A dense Llama with its tokenizer. Read only."""
    return write_tiny_folder(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="session")
def exported_summary(tiny_source, tmp_path_factory):
    """What `pipeline.run` returned for `exported`."""
    folder = tmp_path_factory.mktemp("exported") / "tiny-mixed"
    return pipeline.run(tiny_recipe(tiny_source, sparsity=MIXED), output_dir=folder)


@pytest.fixture(scope="session")
def exported(exported_summary) -> Path:
    """The tiny model, pruned in every way at once, with ONNX, verified. Read only: copy it to change it."""
    return exported_summary.folder
