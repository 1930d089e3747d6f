"""The words in which a run says what it did."""

import io

from rich.console import Console

from nm_export.learning.report import LearningReport
from nm_export.summary import FolderVerification, learned_in_words
from nm_export.verification import VerificationReport
from nm_export.verification.report import ModuleCheck


def test_training_that_was_rejected_is_said_to_be():
    report = LearningReport("end_to_end", [], {"model": (0.00079, 0.00102, False)})
    assert learned_in_words(report) == (
        "rejected, because held-out text got worse; the starting values stay; loss on held-out text 0.00079 -> 0.00102"
    )


def test_training_that_was_kept():
    report = LearningReport("end_to_end", [], {"model": (0.02, 0.01, True)})
    assert learned_in_words(report) == "kept; loss on held-out text 0.02 -> 0.01"


def test_blocks_are_counted():
    blocks = {"layers.0": (4.0, 1.0, True), "layers.1": (1.0, 1.0, True), "layers.2": (1.0, 2.0, False)}
    assert learned_in_words(LearningReport("blockwise", [], blocks)).startswith(
        "2 of 3 blocks kept, their loss on held"
    )
    nothing = dict.fromkeys(blocks, (1.0, 2.0, False))
    assert learned_in_words(LearningReport("blockwise", [], nothing)).startswith("all 3 blocks rejected")


def test_verify_ends_with_a_verdict():
    report = VerificationReport(modules={"reloaded": ModuleCheck(14, True, 0.0)}, reloaded_logits_equal=True)
    console = Console(width=200, file=io.StringIO())
    console.print(FolderVerification("out", report))
    assert console.file.getvalue().splitlines() == [
        "Verified reloaded  14 modules keep equal channels, equal outputs; logits bit-equal",
        "out agrees: all forms of the model keep the same channels.",
    ]
