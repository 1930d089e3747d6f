"""Check the wheel that this interpreter has installed: what is in it, and that its library computes.

Usage: python check_wheel.py   (outside the repository; needs onnx, onnxruntime and ml_dtypes, not torch)
"""

import importlib.metadata
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    import nm_export
    from nm_export.ops import ops_library_path, ops_library_version

    package = Path(nm_export.__file__).resolve().parent
    assert ROOT not in package.parents, f"{package} is the source tree; run this from another folder"
    distribution = importlib.metadata.distribution("nm_export")
    files = {file.as_posix() for file in distribution.files or ()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nm_export").rglob("*.py")}
    plugin = "nm_export/optimum_plugin/register/nm_sparse.py"
    missing = (sources - {plugin} | {"nm_export/py.typed", "optimum/commands/register/nm_sparse.py"}) - files
    assert not missing, f"not in the wheel: {sorted(missing)}"
    surplus = {file for file in files if file.split("/")[0] in ("tests", "docs") or "/kernels/" in file}
    assert not surplus, f"does not belong into the wheel: {sorted(surplus)}"
    tags = [line for line in (distribution.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: ")]
    assert tags, "the wheel has no tags"
    assert all(tag.startswith("Tag: py3-none-") and not tag.endswith("-any") for tag in tags), tags
    library = ops_library_path()
    assert package in library.parents, f"{library} is not the wheel's"
    assert ops_library_version() == distribution.version

    sys.path.append(str(ROOT))  # behind the installed package
    from tests.kernels.check_ort_version import main as check_library
    from tests.kernels.matmul_sessions import sparse_matmul_model
    from tests.kernels.sessions import nm_topk_model

    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "nm_topk.onnx"), Path(folder, "product.onnx")
        shape = ["batch", "sequence", 64]
        models[0].write_bytes(nm_topk_model(shape=shape, n=8, m=16, shift_mode=1, variance_correction=1))
        models[1].write_bytes(sparse_matmul_model("float32", "float16"))
        check_library(str(library), *map(str, models))
    print(f"nm_export {distribution.version}: {', '.join(tag.removeprefix('Tag: ') for tag in tags)}, {library.name}")


if __name__ == "__main__":
    main()
