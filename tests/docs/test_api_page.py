"""The page of the Python interface names everything that is public."""

import re

import nm_export
import nm_export.onnx
import nm_export.recipe
from tests.docs.blocks import ROOT


def test_every_public_name_is_documented():
    text = (ROOT / "docs" / "api.md").read_text()
    named = set(re.findall(r"^(?:::: |      heading: )(nm_export[\w.]*)$", text, flags=re.M))
    public = {f"nm_export.{name}" for name in nm_export.__all__}
    public |= {f"nm_export.onnx.{name}" for name in nm_export.onnx.__all__ if name not in nm_export.__all__}
    assert public <= named
