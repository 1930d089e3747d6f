"""The compiled operators: where the library is and how an ONNX Runtime session gets it.

The library holds the domain ``ai.nm_export`` and works with every ONNX Runtime from 1.17 on; PyTorch uses it through
``nm_export.torch_ops``. It is built when the package is installed and lies in the package's folder ``lib``. Importing
this module needs neither ONNX Runtime nor the library.
"""

import ctypes
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

from nm_export.errors import UserError

_OVERRIDE = "NM_EXPORT_OPS_LIBRARY"
_FILE_NAMES = {"win32": "nm_export_ops.dll", "darwin": "libnm_export_ops.dylib"}
_FILE_NAME = _FILE_NAMES.get(sys.platform, "libnm_export_ops.so")


def ops_library_path() -> Path:
    """Return the absolute path of the compiled operator library.

    The environment variable ``NM_EXPORT_OPS_LIBRARY`` names another file to use. Otherwise it is the library beside
    this module, or, when this module is read from a source tree, the one of the installed package.

    Raises:
        UserError: there is no library, or the variable names a file that does not exist.
    """
    override = os.environ.get(_OVERRIDE)
    if override:
        path = Path(override).resolve()
        if not path.is_file():
            raise UserError(f"{_OVERRIDE} names {path}, which is not a file; correct it or unset it.")
        return path
    beside = Path(__file__).resolve().parent / "lib" / _FILE_NAME
    if beside.is_file():
        return beside
    installed = _installed_library()
    if installed is not None:
        return installed
    raise UserError(
        f"The compiled operator library {_FILE_NAME} was not found beside {Path(__file__).resolve().parent} or in an "
        "installed nm_export; install the package with `pip install .` in its source folder."
    )


def load_library() -> ctypes.CDLL:
    """Load the operator library into this process, for its plain C interface (``kernels/c_api.h``).

    Raises:
        UserError: there is no library, it cannot be loaded, or it is not one of nm_export.
    """
    path = ops_library_path()
    try:
        library = ctypes.CDLL(str(path))
        library.nm_export_ops_version.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise UserError(f"{path} cannot be used as the operator library of nm_export: {error}") from error
    return library


def ops_library_version() -> str:
    """Return the version that is compiled into the operator library.

    Raises:
        UserError: there is no library, or it cannot be loaded.
    """
    version: bytes = load_library().nm_export_ops_version()
    return version.decode()


def register(session_options: Any) -> None:
    """Make the operators known to sessions that are created with these ``onnxruntime.SessionOptions``.

    Raises:
        UserError: there is no library, or ONNX Runtime refuses it.
    """
    path = ops_library_path()
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime's own exception types differ between its versions
        raise UserError(f"ONNX Runtime cannot load the operator library {path}: {error}") from error


def _installed_library() -> Path | None:
    """The library of the installed distribution, which a source tree in the working directory hides from imports."""
    try:
        distribution = importlib.metadata.distribution("nm_export")
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(f"nm_export/lib/{_FILE_NAME}"))).resolve()
    return path if path.is_file() else None
