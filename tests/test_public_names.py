"""The public names are what they say, in whatever order they are imported."""

import importlib
import pkgutil
import types

import nm_export


def test_no_module_hides_a_public_name():
    # a module of a function's name takes the function's place as soon as anything imports it
    modules = {module.name for module in pkgutil.iter_modules(nm_export.__path__)}
    assert not modules & set(nm_export.__all__)


def test_every_public_name_can_be_imported():
    for name in nm_export.__all__:
        assert not isinstance(getattr(importlib.import_module("nm_export"), name), types.ModuleType)
