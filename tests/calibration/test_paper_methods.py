"""The package against the paper's formulas, on a tiny model: predictions, and with them the perplexity."""

import copy

import pytest
import torch

from tests.calibration import paper_methods
from tests.tiny_models import dense_model, token_ids

CALIBRATION = token_ids(samples=4, length=24, seed=1)
WINDOWS = token_ids(samples=4, length=32, seed=2)


def package(dense, method):
    """Log-probabilities of the package."""
    model = paper_methods.package(copy.deepcopy(dense), method, CALIBRATION)
    return paper_methods.log_probabilities(model, WINDOWS)


def kl(expected, actual):
    return float((expected.exp() * (expected - actual)).sum(-1).mean())


@pytest.mark.parametrize("method", paper_methods.RECIPES)
def test_predictions_are_those_of_the_formulas(method):
    dense = dense_model("qwen2")  # with biases
    inputs = paper_methods.calibration_inputs(dense, CALIBRATION)
    with paper_methods.pruned(dense, method, inputs):
        theirs = paper_methods.log_probabilities(dense, WINDOWS)
    ours = package(dense, method)
    gap = paper_methods.losses(ours, WINDOWS).mean() - paper_methods.losses(theirs, WINDOWS).mean()
    assert abs(gap) < 0.01  # 1 % of the perplexity
    # a method that were left out would differ as much as plain magnitude, or the dense model, does
    other = dense if method == "magnitude" else None
    without = paper_methods.log_probabilities(other, WINDOWS) if other else package(dense, "magnitude")
    assert kl(theirs, ours) < 0.02 * kl(theirs, without)


def test_the_formulas_leave_the_dense_model_as_it_was():
    dense = dense_model()
    before = paper_methods.log_probabilities(dense, WINDOWS)
    with paper_methods.pruned(dense, "magnitude", paper_methods.calibration_inputs(dense, CALIBRATION), 1, 16):
        assert not torch.allclose(paper_methods.log_probabilities(dense, WINDOWS), before, atol=1e-2)
    assert torch.equal(paper_methods.log_probabilities(dense, WINDOWS), before)
