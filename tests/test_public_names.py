"""The public names are what they say, in whatever order they are imported."""

import importlib
import pkgutil
import re
import subprocess
import sys
import types

import pytest

import nm_export


def test_no_module_hides_a_public_name():
    # a module of a function's name takes the function's place as soon as anything imports it
    modules = {module.name for module in pkgutil.iter_modules(nm_export.__path__)}
    assert not modules & set(nm_export.__all__)


def test_every_public_name_can_be_imported():
    for name in nm_export.__all__:
        assert not isinstance(getattr(importlib.import_module("nm_export"), name), types.ModuleType)


def test_names_that_people_look_for_are_there():
    for name in ("LearningSection", "SparsitySection", "score_layers", "trainable", "sparsify", "verify"):
        assert name in nm_export.__all__
    assert re.fullmatch(r"\d+\.\d+.*|unknown", nm_export.__version__)
    assert {"__version__", "recipe", "sparsify"} <= set(dir(nm_export))


def test_subpackages_are_reachable_after_a_plain_import():
    program = "import nm_export; print(nm_export.recipe.Override.__name__, nm_export.evaluation.evaluate_text.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Override", "evaluate_text"]


def test_a_name_that_does_not_exist_gets_the_nearest():
    with pytest.raises(AttributeError, match=r"has no attribute 'sparsfy'; did you mean sparsify\?"):
        nm_export.sparsfy  # noqa: B018
    with pytest.raises(AttributeError, match=r"has no attribute 'x1'$"):
        nm_export.x1  # noqa: B018


def test_importing_the_package_imports_no_library():
    program = "import sys, nm_export; print([m for m in ('torch', 'transformers', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
