"""What a run did, in one screen."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from nm_export.learning.report import LearningReport
from nm_export.plan import Plan
from nm_export.publishing.hub import Publication
from nm_export.sizes import size_in_words
from nm_export.tables import Facts, Sentences, time_in_words
from nm_export.verification import VerificationReport


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    Attributes:
        folder: what was written.
        plan: which linears are pruned; None if the folder was there already.
        perplexity: `dense`, `sparse` and `ratio` on held-out text, or None.
        verification: what was checked, or None.
        seconds: duration of each stage.
        peak_memory: bytes.
        published: what the Hub holds, or None.
        learning: what was trained, or None.
    """

    folder: Path
    plan: Plan | None
    perplexity: dict[str, Any] | None
    verification: VerificationReport | None
    seconds: dict[str, float]
    peak_memory: int
    published: Publication | None = None
    learning: LearningReport | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> "Summary":
        """Return what was found out when `folder` was made."""
        numbers = json.loads((folder / "measurements.json").read_text(encoding="utf-8"))
        report, learned = numbers["verification"], numbers.get("learning")
        return cls(
            folder,
            None,
            numbers["perplexity"],
            VerificationReport.from_dict(report) if report else None,
            numbers["seconds"],
            numbers["peak_memory_bytes"],
            learning=LearningReport.from_dict(learned) if learned else None,
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.plan is None:
            yield Sentences(
                f"{self.folder} is what this recipe gives, every file as it was written: nothing was done. "
                "(--overwrite makes it again.)"
            )
            yield ""
        yield Facts(tuple(self._facts()))
        yield "\n[bold]Load it[/bold]"
        yield Text(self.snippets(), no_wrap=True, overflow="ignore")  # to be copied: a long path is not broken

    def snippets(self) -> str:
        """Python code that loads what was written, one way after the other."""
        where, branch = str(self.folder), ""
        if self.published:
            where = self.published.repo_id
            branch = "" if self.published.revision == "main" else f', revision="{self.published.revision}"'
        text = (
            "from transformers import AutoModelForCausalLM\n"
            f'model = AutoModelForCausalLM.from_pretrained("{where}"{branch}, trust_remote_code=True)\n'
        )
        if (self.folder / "onnx").is_dir():
            text += (
                "\nfrom nm_export.onnx import NMSparseORTModelForCausalLM\n"
                f'model = NMSparseORTModelForCausalLM.from_pretrained("{where}"{branch})\n'
            )
        if (self.folder / "onnx" / "genai_config.json").is_file():
            text += (
                "\nfrom nm_export.onnx import genai_model  # onnxruntime-genai\n"
                f'model = genai_model("{self.folder}/onnx")\n'
                f"# programs that open {self.folder}/onnx themselves are slower than the dense model until\n"
                f"# nm-export enable-genai {self.folder}\n"
            )
        return text

    def _facts(self) -> Iterator[tuple[str, str]]:
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        onnx = sum(path.stat().st_size for path in files if path.is_relative_to(self.folder / "onnx"))
        total = sum(path.stat().st_size for path in files)
        yield (
            "Written",
            f"{self.folder} ({size_in_words(total)}" + (f", {size_in_words(onnx)} of it ONNX)" if onnx else ")"),
        )
        if self.published:
            yield "Published", str(self.published)
        if self.plan is not None:
            plan = self.plan
            yield (
                "Sparsity",
                f"{len(plan.pruned)} of {len(plan.linears)} decoder linears, {plan.pruned_share:.1%} of their MACs; "
                f"{plan.saved_share:.1%} need not be computed",
            )
        if self.perplexity:
            p = self.perplexity
            yield (
                "Perplexity",
                f"{p['sparse']:.3f} sparse, {p['dense']:.3f} dense, ratio {p['ratio']:.3f} ({p['text']})",
            )
        if self.learning is not None:
            yield "Learned", learned_in_words(self.learning)
        yield from verified_in_words(self.verification)
        yield "Card", f"{self.folder / 'README.md'}, and report.html beside it for a browser"
        yield "Time", f"{time_in_words(sum(self.seconds.values()))}, peak memory {size_in_words(self.peak_memory)}"


@dataclass(frozen=True)
class FolderVerification:
    """The answer of `nm-export verify`: that all forms of a model agree.

    Attributes:
        folder: folder or repository, as the user named it.
        report: what was checked.
    """

    folder: str
    report: VerificationReport

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self.report.to_dict()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield Facts(tuple(verified_in_words(self.report)))
        yield Sentences(f"{self.folder} agrees: all forms of the model keep the same channels.")


def verified_in_words(report: VerificationReport | None) -> Iterator[tuple[str, str]]:
    """What verification has found, a label and a sentence for each form of the model."""
    if report is None:
        yield "Verified", "no (verify.enabled is off)"
        return
    for backend, check in report.modules.items():
        outputs = f"outputs within {check.largest_error:.0e}" if check.largest_error else "equal outputs"
        line = f"{check.modules} modules keep equal channels, {outputs}"
        if backend == "reloaded":
            line += "; logits bit-equal"
        result = report.end_to_end.get(backend)
        if result and report.floor:
            line += (
                f"; KL {result.kl:.4f}, top-1 {result.top1_agreement:.1%} "
                f"(rounding floor: {report.floor.kl:.4f}, {report.floor.top1_agreement:.1%})"
            )
        yield f"Verified {backend}", line
    if report.against_dense:
        parts = (f"{result.perplexity:.3f} {name.replace('_', ' ')}" for name, result in report.against_dense.items())
        yield "Quantized", f"perplexity on the text of verification: {', '.join(parts)}"


def learned_in_words(report: LearningReport) -> str:
    """What training has done, and whether it was kept."""
    kept = [name for name, (_, _, is_kept) in report.held_out.items() if is_kept]
    changes = ", ".join(f"{before:.5g} -> {after:.5g}" for before, after, _ in list(report.held_out.values())[:1])
    if len(report.held_out) == 1:
        verdict = "kept" if kept else "rejected, because held-out text got worse; the starting values stay"
        return f"{verdict}; loss on held-out text {changes}"
    better = [after / before for before, after, is_kept in report.held_out.values() if is_kept and before > 0]
    if not better:
        return f"all {len(report.held_out)} blocks rejected, because held-out text got worse; the starting values stay"
    mean = statistics.geometric_mean(better)
    return (
        f"{len(kept)} of {len(report.held_out)} blocks kept, their loss on held-out text {1 - mean:.1%} lower on "
        "average; the others keep their starting values"
    )
