"""Verification: modules exactly, the reloaded model bit for bit, ONNX Runtime within the model's own floor."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nm_export.batches import Tokens, read_tokens
from nm_export.compute_dtype import stored_types
from nm_export.errors import NMExportError
from nm_export.evaluation import Divergence, divergence, torch_logits
from nm_export.memory import fits
from nm_export.modeling.modeling_nm_sparse import plain_torch
from nm_export.verification.floor import rounding_floor
from nm_export.verification.modules import ModuleRecord, capture_inputs, check_modules, record_modules
from nm_export.verification.reload import check_types, reload_and_record
from nm_export.verification.report import VerificationReport

MODULE_TOKENS = 64
GREEDY_TOKENS = 32

# Below these a difference says nothing, however small the floor: single near-ties that flip among a thousand tokens.
_NOISE = {"kl": 1e-3, "disagreement": 0.01, "nll_difference": 0.01}

_LIBRARY = {"onnx_kernel": True, "onnx_function": False}


def verify(
    folder: Path,
    model: Any,
    sequences: Any,
    *,
    output_tolerance: float = 1e-4,
    divergence_factor: float = 2.0,
    onnx: bool = True,
    stored: torch.dtype | None = None,
) -> VerificationReport:
    """Compare every form of a published folder with the calibrated model that it was written from.

    Args:
        folder: published folder, with `onnx/model.onnx` if `onnx`.
        model: the calibrated `NMSparseForCausalLM`.
        sequences: held-out token ids, as in `nm_export.verify`. Differences grow along a window, so that many short
            ones measure them better than one long one.
        output_tolerance: largest difference of a module's outputs, relative to its largest output.
        divergence_factor: how many times the model's own rounding floor is accepted end to end.
        onnx: whether to check ONNX Runtime with the compiled kernel and with the function bodies.
        stored: type that the weights in the folder's files must have; None does not ask.

    The folder is reloaded in the type that the model has in memory: a model of float32 whose weights are stored as
    bfloat16 is compared, bit for bit, with the stored numbers in float32.

    Raises:
        NMExportError: names the first module or measure out of tolerance, or a tensor of another type than `stored`.
    """
    report = VerificationReport()
    if stored is not None:
        check_types(folder, stored_types(model, stored))
    tokens = read_tokens(sequences, "verify", predicting=True)
    ids = tokens.rows[0][None, :MODULE_TOKENS]
    with plain_torch():  # what a reader without this package computes, and no code that the kernels share
        inputs = capture_inputs(model, ids)
        expected = record_modules(model, inputs)
        expected_logits = _logits(model, ids)

    logits, records = reload_and_record(folder, ids, inputs, model.dtype)
    report.modules["reloaded"] = check_modules("the reloaded model", expected, records, output_tolerance)
    report.reloaded_logits_equal = torch.equal(logits, expected_logits)
    if not report.reloaded_logits_equal:
        raise NMExportError(f"Verification failed: {folder}, reloaded, gives other logits than the calibrated model.")
    if onnx:
        _verify_graph(report, folder, model, tokens, inputs, expected, output_tolerance, divergence_factor)
    return report


def _verify_graph(
    report: VerificationReport,
    folder: Path,
    model: Any,
    sequences: Tokens,
    inputs: dict[str, Tensor],
    expected: dict[str, ModuleRecord],
    output_tolerance: float,
    divergence_factor: float,
) -> None:
    from nm_export.onnx.stored_weights import stored_format
    from nm_export.verification.quantized import against_dense, float_inputs, stored_weights_in

    path = folder / "onnx" / "model.onnx"
    if stored_format(path) is None:
        if model.dtype != torch.float32:
            with plain_torch():
                expected = record_modules(model, inputs, widened=True)
        report.floor = rounding_floor(model, sequences)
        _verify_onnx(report, folder, model, sequences, inputs, expected, output_tolerance)
        _judge(report, divergence_factor)
        return
    # bfloat16 would round the numbers that codes and scales stand for
    holder = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    with stored_weights_in(holder, path), float_inputs(folder) as exact:
        with plain_torch():
            expected = record_modules(holder, {name: x.float() for name, x in inputs.items()})
        report.floor = rounding_floor(holder, sequences)
        _verify_onnx(report, exact, holder, sequences, inputs, expected, output_tolerance)
    del holder
    _judge(report, divergence_factor)
    report.against_dense = against_dense(folder, model, sequences)


def _verify_onnx(
    report: VerificationReport,
    folder: Path,
    model: Any,
    sequences: Tokens,
    inputs: dict[str, Tensor],
    expected: dict[str, ModuleRecord],
    output_tolerance: float,
) -> None:
    from nm_export.onnx import NMSparseORTModelForCausalLM
    from nm_export.onnx.probe import run_probe

    path = folder / "onnx" / "model.onnx"
    reference, prompt = torch_logits(model), sequences.rows[0][None, :MODULE_TOKENS]
    expected_tokens = _greedy(model, prompt)
    for backend, library in _LIBRARY.items():
        both = [
            run_probe(
                path,
                {name: x[:, start:].float().numpy() for name, x in inputs.items()},
                library=library,
                session_options=_session_options(path),
            )
            for start in (0, -1)  # all tokens at once, then the last alone, as in decoding
        ]
        records = {
            name: (
                np.concatenate([call[name][0] for call in both], axis=1),
                np.concatenate([call[name][1] for call in both], axis=1),
            )
            for name in inputs
        }
        report.modules[backend] = check_modules(backend, expected, records, output_tolerance)
        # one session at a time: each holds a packed copy of the weights, where there is room
        ort = NMSparseORTModelForCausalLM.from_pretrained(
            folder, library=library, session_options=_session_options(path), spinning=False
        )
        results = divergence(reference, {backend: torch_logits(ort)}, sequences, f"Verifying, {backend}")
        report.end_to_end[backend] = results[backend]
        equal = (_greedy(ort, prompt) == expected_tokens).long().cumprod(0)
        report.greedy_agreement[backend] = (int(equal.sum()), len(expected_tokens))
        del ort


def _session_options(path: Path) -> Any:
    """Options of a session that leaves the weights in their file if a packed copy of them would not fit into memory."""
    from onnxruntime import SessionOptions

    from nm_export.onnx.session import data_path

    options = SessionOptions()
    if not fits(data_path(path).stat().st_size):
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _judge(report: VerificationReport, factor: float) -> None:
    assert report.floor is not None
    floor = _distances(report.floor)
    for backend, result in report.end_to_end.items():
        for measure, value in _distances(result).items():
            limit = max(factor * floor[measure], _NOISE[measure])
            if not value <= limit:
                raise NMExportError(
                    f"Verification failed: {backend} differs from the calibrated model end to end ({measure} "
                    f"{value:.3g}, accepted {limit:.3g}) although every module agrees; look at the rest of the graph."
                )


def _distances(result: Divergence) -> dict[str, float]:
    return {
        "kl": result.kl,
        "disagreement": 1 - result.top1_agreement,
        "nll_difference": result.nll_difference,
    }


def _logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids.to(model.device), use_cache=False).logits.cpu()


def _greedy(model: Any, prompt: Tensor) -> Tensor:
    tokens = model.generate(
        prompt.to(model.device),
        attention_mask=torch.ones_like(prompt).to(model.device),
        do_sample=False,
        min_new_tokens=GREEDY_TOKENS,
        max_new_tokens=GREEDY_TOKENS,
        pad_token_id=0,
    )
    return tokens[0, prompt.shape[1] :].cpu()
