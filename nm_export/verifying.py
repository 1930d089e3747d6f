"""Compare a folder with the model in memory that it was written from."""

from pathlib import Path
from typing import Any

from nm_export.arguments import require_folder, require_sparse
from nm_export.batches import check_vocabulary, read_tokens
from nm_export.calibration.budget import refuse_open_budget
from nm_export.errors import UserError
from nm_export.exported import check_exported
from nm_export.publishing.saved import record_verification
from nm_export.verification import VerificationReport
from nm_export.verification.forms import verify as compare_forms


def verify(
    folder: str | Path,
    model: Any,
    sequences: Any,
    *,
    output_tolerance: float = 1e-4,
    divergence_factor: float = 2.0,
    onnx: bool = True,
) -> VerificationReport:
    """Compare every form of an exported folder with the calibrated model that it was written from.

    In a folder of `nm_export.save` the result is kept, in measurements.json and on the card, and `nm-export publish`
    takes it from there. A recipe's folder stays as it is.

    Args:
        folder: folder of the model, with `onnx/model.onnx` if `onnx`.
        model: the calibrated `NMSparseForCausalLM`.
        sequences: held-out token ids, int64 `[windows, length]` or whatever else `nm_export.batches.read_tokens` takes.
            Differences grow along a window, so that many short ones measure them better than one long one.
        output_tolerance: largest difference of a module's outputs, relative to its largest output.
        divergence_factor: how many times the model's own rounding floor is accepted end to end.
        onnx: whether to check ONNX Runtime with the compiled kernel and with the function bodies.

    Raises:
        UserError: `folder` is no exported folder or has no ONNX model, or `model` is not sparse.
        NMExportError: names the first module or measure out of tolerance.
    """
    folder = require_folder(folder, "verify").resolve()
    require_sparse(model, "verify")
    refuse_open_budget(model, "verify")
    check_exported(folder)
    if onnx and not (folder / "onnx" / "model.onnx").is_file():
        raise UserError(f"{folder} has no onnx/model.onnx; export it with export_onnx, or pass onnx=False.")
    for name, value, least in (("output_tolerance", output_tolerance, 0), ("divergence_factor", divergence_factor, 1)):
        if not isinstance(value, (int, float)) or not value >= least:
            raise UserError(f"verify: {name} is {value!r:.40}; it is a number from {least}.")
    tokens = check_vocabulary(read_tokens(sequences, "verify", predicting=True), model, "verify")
    report = compare_forms(
        folder,
        model,
        tokens,
        output_tolerance=output_tolerance,
        divergence_factor=divergence_factor,
        onnx=onnx,
    )
    record_verification(folder, report)
    return report
