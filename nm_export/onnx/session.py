"""Sessions of ONNX Runtime that run the compiled kernels where they can and the function bodies where they cannot."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nm_export import ops
from nm_export.errors import NMExportError, UserError
from nm_export.onnx.call_inputs import InputError
from nm_export.onnx.extras import require
from nm_export.onnx.functions import DOMAIN
from nm_export.onnx.providers import Options, Providers, choose_providers, takes_nodes

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession, SessionOptions

_REGISTERED = "nm_export.library"  # entry of session options that have the operators; they cannot take them twice

CACHE_KEY = "nm_export.cache"
"""Metadata of a graph: how `present` follows from `past_key_values`; without it, buffers are extended in place."""
CONCATENATED = "concatenated"
"""Value of `CACHE_KEY`: `present` is `past_key_values` with the new tokens behind it, another tensor."""


def create_session(
    model_path: str | Path,
    *,
    library: bool | None = None,
    providers: Providers | None = None,
    provider_options: Options | None = None,
    session_options: "SessionOptions | None" = None,
    spinning: bool | None = None,
) -> "InferenceSession":
    """Open a graph of this package with the compiled operators or, without them, with the function bodies it carries.

    Args:
        model_path: the .onnx file, with its weights in `<model_path>.data`. Either may be a symbolic link.
        library: True insists on the compiled operators, False runs the function bodies, None takes what there is and
            warns when it is the slow one. A graph without operators of this package needs none.
        providers: execution providers in order of preference, as for onnxruntime.InferenceSession, or the name of one;
            None is the CPU. Those that this build of ONNX Runtime lacks are left out, with a warning, if another
            remains. The compiled operators are for the CPU: with a provider that takes nodes from it, the function
            bodies run.
        provider_options: options of the first provider, or one mapping for each, where `providers` has none.
        session_options: options to start from; they are extended in place, and serve several sessions.
        spinning: whether idle threads of the session keep a core busy while they wait for work. Turn it off when
            several sessions live in one process. None leaves it as in `session_options`, which is on.

    Raises:
        UserError: the file does not exist, `library=True` and there is no compiled library, or a provider that ONNX
            Runtime does not know or have.
        NMExportError: ONNX Runtime refuses the file or the library.
    """
    require("onnxruntime", "onnx")
    path = Path(model_path)
    if not path.is_file():
        raise UserError(f"{model_path} does not exist: export the model with ONNX switched on.")
    data = data_path(path)
    source: Path | ModelProto = path
    if path.is_symlink() or data.is_symlink():
        # Some versions of ONNX Runtime refuse external data that is a link, others look beside the link's target.
        require("onnx", "onnx")
        import onnx

        source = onnx.load(path, load_external_data=False)
    return open_session(
        source,
        data,
        library=library,
        providers=providers,
        provider_options=provider_options,
        session_options=session_options,
        spinning=spinning,
    )


def open_session(
    source: "Path | ModelProto",
    data: Path,
    *,
    library: bool | None = None,
    providers: Providers | None = None,
    provider_options: Options | None = None,
    session_options: "SessionOptions | None" = None,
    spinning: bool | None = None,
) -> "InferenceSession":
    """Open a graph file, or a graph in memory whose weights stay where they are, in the file `data`.

    The other arguments and the errors are those of `create_session`.
    """
    import onnxruntime

    chosen = choose_providers(providers, provider_options)
    options = session_options or onnxruntime.SessionOptions()
    if spinning is not None:
        _set(options, "session.intra_op.allow_spinning", str(int(spinning)))
    if library is None or library:
        _register_library(options, takes_nodes(chosen), insist=bool(library), source=source)
    elif _entry(options, _REGISTERED):
        raise InputError("library=False: these session_options have the compiled operators already; give new ones.")
    model: str | bytes = str(source) if isinstance(source, Path) else _point_at(source, data.resolve(), options)
    try:
        return onnxruntime.InferenceSession(model, options, providers=chosen)
    except Exception as error:  # ONNX Runtime's own exception types differ between its versions
        if "Domain already set" in str(error):
            raise InputError("These session_options have the compiled operators already; give new ones.") from error
        if isinstance(source, Path) and data_path(source).name in str(error) and not data.is_file():
            raise UserError(f"{data} does not exist: copy or download the folder again.") from error
        raise NMExportError(f"ONNX Runtime {onnxruntime.__version__} cannot open {data.parent}: {error}") from error


def data_path(model_path: Path) -> Path:
    """The file that holds a graph's weights."""
    return model_path.with_name(f"{model_path.name}.data")


def has_operators(source: "Path | ModelProto") -> bool:
    """Whether a graph has operators of this package; that of a model whose weights were pruned has none.

    Raises:
        NMExportError: there is no such file, or it holds no graph.
    """
    if isinstance(source, Path):
        source = _load(source)
    return any(opset.domain == DOMAIN for opset in source.opset_import)


def concatenates_cache(source: "Path | InferenceSession") -> bool:
    """Whether a graph gives its cache back as new tensors, longer by the new tokens, rather than in the same buffers.

    Raises:
        NMExportError: there is no such file, or it holds no graph.
    """
    if isinstance(source, Path):
        return any(p.key == CACHE_KEY and p.value == CONCATENATED for p in _load(source).metadata_props)
    return bool(source.get_modelmeta().custom_metadata_map.get(CACHE_KEY) == CONCATENATED)


def _load(path: Path) -> "ModelProto":
    require("onnx", "onnx")
    import onnx

    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exception types, and those of the file system
        raise NMExportError(f"{path} cannot be read as an ONNX graph: {error}") from error


def _register_library(
    options: "SessionOptions", elsewhere: Sequence[str], insist: bool, source: "Path | ModelProto"
) -> None:
    """Give the compiled operators to a session unless its nodes run elsewhere, by providers of these names."""
    if _entry(options, _REGISTERED):
        return
    try:
        if elsewhere:
            raise UserError(f"the compiled operators run on CPUExecutionProvider only, and {elsewhere[0]} takes nodes.")
        ops.register(options)
        options.add_session_config_entry(_REGISTERED, "1")
    except UserError as error:
        if not has_operators(source):
            return
        if insist:
            raise
        warnings.warn(f"N:M operators run as ONNX function bodies, slower than compiled: {error}", stacklevel=4)


def _entry(options: "SessionOptions", key: str) -> str | None:
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:  # it has none
        return None


def _set(options: "SessionOptions", key: str, value: str) -> None:
    if _entry(options, key) != value:  # ONNX Runtime warns of what it has been told already
        options.add_session_config_entry(key, value)


def _point_at(model: "ModelProto", data: Path, options: "SessionOptions") -> bytes:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data.name
    _set(options, "session.model_external_initializers_file_folder_path", str(data.parent))
    return model.SerializeToString()


def empty_cache(session: "InferenceSession", batch: int) -> dict[str, np.ndarray]:
    """The cache before the first token: every `past_key_values` input, float32 `[batch, heads, 0, head_size]`."""
    return {
        i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past_key_values")
    }
