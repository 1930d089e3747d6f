"""Where Python finds the library."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from nm_export import ops
from nm_export.errors import UserError


def test_the_path_is_an_absolute_file():
    path = ops.ops_library_path()
    assert path.is_absolute()
    assert path.is_file()


def test_the_library_tells_its_version():
    assert ops.ops_library_version()[0].isdigit() or ops.ops_library_version() == "development"


def test_the_environment_names_another_file(tmp_path, monkeypatch):
    other = tmp_path / "other.so"
    other.write_bytes(b"not a library")
    monkeypatch.setenv("NM_EXPORT_OPS_LIBRARY", str(other))
    assert ops.ops_library_path() == other
    with pytest.raises(UserError, match=r"other\.so cannot be used"):
        ops.ops_library_version()
    monkeypatch.setenv("NM_EXPORT_OPS_LIBRARY", str(tmp_path / "missing.so"))
    with pytest.raises(UserError, match=r"missing\.so, which is not a file"):
        ops.ops_library_path()


def test_a_library_that_onnx_runtime_refuses_is_named(tmp_path, monkeypatch):
    import onnxruntime

    other = tmp_path / "other.so"
    other.write_bytes(b"not a library")
    monkeypatch.setenv("NM_EXPORT_OPS_LIBRARY", str(other))
    with pytest.raises(UserError, match=r"ONNX Runtime cannot load the operator library .*other\.so"):
        ops.register(onnxruntime.SessionOptions())


def test_a_source_tree_without_an_installation_says_what_to_do(tmp_path, monkeypatch):
    def no_distribution(name):
        raise PackageNotFoundError(name)

    monkeypatch.delenv("NM_EXPORT_OPS_LIBRARY", raising=False)
    monkeypatch.setattr(ops, "__file__", str(tmp_path / "nm_export" / "ops.py"))
    monkeypatch.setattr(ops.importlib.metadata, "distribution", no_distribution)
    with pytest.raises(UserError, match=r"pip install \."):
        ops.ops_library_path()


def test_importing_needs_no_onnx_runtime():
    code = "import sys; sys.modules['onnxruntime'] = None; import nm_export.ops"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
