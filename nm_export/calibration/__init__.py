"""From text to sparsity parameters: token sequences, statistics of activations, scores and shifts."""

from nm_export.calibration.calibrate import calibrate

__all__ = ["calibrate"]
