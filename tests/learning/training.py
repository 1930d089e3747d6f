"""A tiny sparse model and a section that trains it in a second."""

from typing import Any

import torch

from nm_export.calibration import calibrate
from nm_export.modeling import NMSparseForCausalLM
from nm_export.plan import make_plan
from nm_export.recipe import LearningSection, Recipe
from tests.tiny_models import dense_model, token_ids

SPARSITY: dict[str, Any] = {
    "score": "weight_norm",
    "shift": "learned",
    "output_scale": True,
    "output_bias": "learned",
    "residual_rank": 2,
}
HELD_OUT = 2
SEQUENCES = token_ids(samples=8 + HELD_OUT, length=10)
MODES = ("blockwise", "end_to_end")


def untrained(architecture: str = "llama", **changes: Any) -> Any:
    """A sparse model with neutral parameters, planned by a recipe that trains all that it has."""
    learning = {"mode": "blockwise", "parameters": ("shift", "scale", "bias", "residual", "weight")}
    recipe = Recipe(model={"source": "in-memory"}, sparsity={**SPARSITY, **changes}, learning=learning)
    model = dense_model(architecture)
    return NMSparseForCausalLM.from_dense(model, make_plan(model, recipe).sparsity())


def calibrated(architecture: str = "llama", **changes: Any) -> Any:
    model = untrained(architecture, **changes)
    calibrate(model, SEQUENCES)
    return model


def section(mode: str, **changes: Any) -> LearningSection:
    """Few steps at a high learning rate; sixteen passes, unless told otherwise."""
    values = {
        "mode": mode,
        "parameters": ("shift", "scale", "bias", "residual"),
        "batch_size": 2,
        "epochs": 4,
        "learning_rate": 5e-3,
        "held_out_samples": HELD_OUT,
        "weight_rank": 2,
    }
    return LearningSection(**{**values, **changes})


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert different == []
