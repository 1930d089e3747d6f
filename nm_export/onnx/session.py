"""Sessions of ONNX Runtime that run the compiled kernels where they can and the function bodies where they cannot."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nm_export.errors import NMExportError, UserError
from nm_export.onnx.extras import require

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

_CPU = "CPUExecutionProvider"


def create_session(
    model_path: str | Path,
    *,
    library: bool | None = None,
    providers: Sequence[Any] | None = None,
    session_options: "SessionOptions | None" = None,
    spinning: bool = True,
) -> "InferenceSession":
    """Open a graph of this package with the compiled operators or, without them, with the function bodies it carries.

    Args:
        model_path: the .onnx file. Its external data is looked for beside the real file, so links are followed.
        library: True insists on the compiled operators, False runs the function bodies, None takes what there is and
            warns when it is the slow one.
        providers: execution providers as for onnxruntime.InferenceSession; None is the CPU. The compiled operators run
            on the CPU only: with another provider the function bodies are used.
        session_options: options to start from; they are extended in place.
        spinning: whether idle threads of the session keep a core busy while they wait for work. Turn it off when
            several sessions live in one process.

    Raises:
        UserError: the file does not exist, or `library=True` and there is no compiled library.
        NMExportError: ONNX Runtime refuses the file or the library.
    """
    require("onnxruntime", "onnx")
    import onnxruntime

    path = Path(model_path).resolve()
    if not path.is_file():
        raise UserError(f"{model_path} does not exist: export the model with ONNX switched on.")
    options = session_options or onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    providers = list(providers or [_CPU])
    on_cpu = all((p if isinstance(p, str) else p[0]) == _CPU for p in providers)
    if library is None or library:
        _register_library(options, on_cpu, insist=bool(library))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise NMExportError(f"ONNX Runtime {onnxruntime.__version__} cannot open {path}: {error}") from error


def _register_library(options: "SessionOptions", on_cpu: bool, insist: bool) -> None:
    from nm_export.ops import ops_library_path

    try:
        if not on_cpu:
            raise UserError("the compiled operators run on CPUExecutionProvider only")
        path = ops_library_path()
    except UserError as error:
        if insist:
            raise
        warnings.warn(
            f"N:M operators run through their ONNX function bodies, several times slower than compiled: {error}",
            stacklevel=3,
        )
        return
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:
        raise NMExportError(f"ONNX Runtime cannot load {path}: {error}") from error


def empty_cache(session: "InferenceSession", batch: int) -> dict[str, np.ndarray]:
    """The cache before the first token: every `past_key_values` input, float32 `[batch, heads, 0, head_size]`."""
    return {
        i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past_key_values")
    }
