"""Training of sparsity parameters: shifts, scales, biases, residuals and low-rank updates of the weights."""

from nm_export.learning.learn import learn
from nm_export.learning.report import HeldOut, LearningReport

__all__ = ["HeldOut", "LearningReport", "learn"]
