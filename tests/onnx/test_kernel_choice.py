"""Where the fused product is chosen."""

import pytest

from nm_export.modeling.modeling_nm_sparse import PHASES
from nm_export.onnx.kernel_choice import fused_product_pays


@pytest.mark.parametrize(
    ("shape", "kept", "phase", "fused"),
    [
        ((576, 192), 8 / 16, "both", True),
        ((576, 576), 12 / 16, "both", True),
        ((576, 576), 14 / 16, "both", False),
        ((4096, 2048), 15 / 16, "both", True),
        ((14336, 4096), 1.0, "both", False),
        ((64, 64), 8 / 16, "both", True),
        ((64, 64), 12 / 16, "both", False),
        ((4096, 4096), 8 / 16, "decode", True),
        ((576, 576), 8 / 16, "decode", True),
        ((576, 576), 14 / 16, "decode", False),
        ((4096, 4096), 8 / 16, "prefill", True),
        ((4096, 4096), 14 / 16, "prefill", False),
        ((576, 576), 8 / 16, "prefill", False),
    ],
)
def test_measured_crossovers(shape: tuple[int, int], kept: float, phase: str, fused: bool) -> None:
    assert fused_product_pays(*shape, kept, PHASES[phase]) is fused
