"""Nothing is pickled or unpickled: not in the sources, and not on the whole road."""

import ast
import pickle
import sys
from pathlib import Path

import torch

import nm_export
from nm_export import pipeline
from nm_export.generation import generate
from tests.tiny_folder import tiny_recipe

PACKAGE = Path(nm_export.__file__).parent
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"torch.load", "torch.save", "np.load", "numpy.load", "pd.read_pickle", "yaml.load", "yaml.unsafe_load"}


def test_the_sources_use_no_pickle():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not MODULES & {name.split(".")[0] for name in names}, file
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in CALLS, f"{file}:{node.lineno}"


_found: list[str] = []
_watching = False


def _audit(event: str, arguments: tuple) -> None:
    if _watching and event == "pickle.find_class":
        _found.append(".".join(arguments))


def test_the_whole_road_unpickles_nothing(tiny_source, tmp_path, monkeypatch):
    global _watching

    def refuse(*_, **__):
        raise AssertionError("a pickle")

    for module, name in [(torch, "load"), (torch, "save"), (pickle, "load"), (pickle, "loads")]:
        monkeypatch.setattr(module, name, refuse)
    sys.addaudithook(_audit)  # hooks stay as long as the process, hence the switch
    _watching = True
    try:
        folder = pipeline.run(tiny_recipe(tiny_source), output_dir=tmp_path / "out").folder
        generate(folder, "a", max_new_tokens=2)
    finally:
        _watching = False
    assert _found == []
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert not kinds & {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz"}


def test_published_code_is_the_package_s_own(exported):
    code = sorted(exported.glob("*.py"))
    assert {"configuration_nm_sparse.py", "modeling_nm_sparse.py"} <= {path.name for path in code}
    for path in code:
        assert path.read_bytes() == (PACKAGE / "modeling" / path.name).read_bytes()
