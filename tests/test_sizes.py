"""Where the size of a folder is told, what makes it smaller is told too."""

import io

from rich.console import Console

from nm_export.dry_run import dry_run
from nm_export.sizes import SMALLER, size_in_words, smaller
from tests.tiny_folder import tiny_recipe


def test_only_if_more_than_half_of_it_is_onnx():
    assert smaller(100, 51) == SMALLER
    assert smaller(100, 50) == ""
    assert size_in_words(1_080_000_000) == "1.08 GB"


def test_a_dry_run_says_it(tiny_source, tmp_path):
    def shown(**options):
        console = Console(file=io.StringIO(), width=1000)
        console.print(dry_run(tiny_recipe(tiny_source), output_dir=tmp_path / "out", **options))
        return console.file.getvalue()

    assert f"More than half of it is ONNX: {SMALLER}." in shown()
    assert "--skip-onnx" not in shown(skip_onnx=True)
