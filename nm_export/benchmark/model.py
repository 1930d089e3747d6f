"""Prefill and decode of an exported model and of its dense twin, alternating in one process."""

import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markdown import Markdown
from rich.text import Text

from nm_export.loading import load_exported
from nm_export.progress import track

_FORMS = ("dense", "sparse")


@dataclass(frozen=True)
class Row:
    """Medians for one runtime and one length of prompt; seconds."""

    runtime: str
    prompt: int
    dense_prefill: float
    sparse_prefill: float
    dense_decode: float
    sparse_decode: float

    @property
    def prefill_ratio(self) -> float:
        """How many times faster the sparse model reads the prompt."""
        return self.dense_prefill / self.sparse_prefill

    @property
    def decode_ratio(self) -> float:
        """How many times faster the sparse model makes a token."""
        return self.dense_decode / self.sparse_decode


@dataclass(frozen=True)
class ModelBenchmark:
    """The result of `benchmark_model`."""

    folder: str
    rows: tuple[Row, ...]
    repeats: int
    new_tokens: int
    threads: int
    machine: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the table, ratio first, speeds in tokens per second."""
        lines = [
            "| runtime | prompt | decode, ratio | sparse | dense | prefill, ratio | sparse | dense |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in self.rows:
            lines.append(
                f"| {row.runtime} | {row.prompt} | {row.decode_ratio:.2f} | {1 / row.sparse_decode:.1f} | "
                f"{1 / row.dense_decode:.1f} | {row.prefill_ratio:.2f} | {row.prompt / row.sparse_prefill:.0f} | "
                f"{row.prompt / row.dense_prefill:.0f} |"
            )
        lines.append(
            f"\nTokens per second, medians of {self.repeats} alternating runs of {self.new_tokens} new tokens; "
            f"{self.threads} threads, {self.machine}."
        )
        return "\n".join(lines)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if console.is_terminal:
            yield Markdown(self.to_markdown())
        else:
            yield Text(self.to_markdown(), no_wrap=True, overflow="ignore")


def benchmark_model(
    folder: str | Path, *, prompts: tuple[int, ...] = (64, 256), new_tokens: int = 24, repeats: int = 5
) -> ModelBenchmark:
    """Time an exported folder against a dense graph of the same weights from the same graph builder.

    Both run float32 in ONNX Runtime (this package's class, compiled operators) and in onnxruntime-genai, on random
    tokens: speed does not depend on the text.

    Args:
        folder: exported folder with `onnx/model.onnx`.
        prompts: lengths of prompt, in tokens.
        new_tokens: tokens generated after each prompt.
        repeats: runs of each; the median counts.

    Raises:
        UserError: the folder was not exported, or the compiled operators or onnxruntime-genai are not installed.
    """
    folder = Path(folder).resolve()
    with tempfile.TemporaryDirectory(prefix="nm_export-bench-") as scratch:
        model, _, _ = load_exported(folder)
        vocabulary = int(model.config.vocab_size)
        folders = {"dense": _dense_twin(model, folder, Path(scratch)), "sparse": folder}
        del model
        rows: list[Row] = []
        for runtime, open_model, run in (
            ("ONNX Runtime", _open_ort, _run_ort),
            ("onnxruntime-genai", _open_genai, _run_genai),
        ):
            models = {form: open_model(folders[form]) for form in _FORMS}
            for prompt in prompts:
                ids = torch.randint(0, vocabulary, (1, prompt), generator=torch.Generator().manual_seed(prompt))
                rows.append(_row(runtime, models, run, ids, new_tokens, repeats))
            del models
    return ModelBenchmark(folder.name, tuple(rows), repeats, new_tokens, torch.get_num_threads(), platform.platform())


def _dense_twin(model: Any, folder: Path, scratch: Path) -> Path:
    from nm_export.onnx.base_graph import build_base_graph

    twin = scratch / "dense"
    (twin / "onnx").mkdir(parents=True)
    build_base_graph(model, folder, twin / "onnx")
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(folder / name, twin / name)
    return twin


def _row(runtime: str, models: dict[str, Any], run: Any, ids: torch.Tensor, new_tokens: int, repeats: int) -> Row:
    prompt = ids.shape[1]
    prefill: dict[str, list[float]] = {form: [] for form in _FORMS}
    decode: dict[str, list[float]] = {form: [] for form in _FORMS}
    for form in _FORMS:
        run(models[form], ids, 2)  # memory is mapped and buffers grow in the first call
    for _ in track(range(repeats), f"{runtime}, {prompt} tokens", total=repeats):
        for form in _FORMS:
            first, *others = run(models[form], ids, new_tokens)
            prefill[form].append(first)
            decode[form].extend(others)
    return Row(
        runtime,
        prompt,
        statistics.median(prefill["dense"]),
        statistics.median(prefill["sparse"]),
        statistics.median(decode["dense"]),
        statistics.median(decode["sparse"]),
    )


def _open_ort(folder: Path) -> Any:
    from nm_export.onnx import NMSparseORTModelForCausalLM

    # the session that waits must not spin: it would take the cores from the one that is timed
    return NMSparseORTModelForCausalLM.from_pretrained(folder, library=True, spinning=False)


def _run_ort(model: Any, ids: torch.Tensor, new_tokens: int) -> list[float]:
    """Seconds of the prompt and of each new token."""
    seconds = []
    cache, next_ids = None, ids
    mask = torch.ones_like(ids)
    for _ in range(1 + new_tokens):
        start = time.perf_counter()
        output = model(input_ids=next_ids, attention_mask=mask, past_key_values=cache)
        seconds.append(time.perf_counter() - start)
        cache, next_ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        mask = torch.cat([mask, torch.ones_like(next_ids)], dim=1)
    return seconds


def _open_genai(folder: Path) -> Any:
    from nm_export.onnx import genai_model

    return genai_model(folder / "onnx", library=True)


def _run_genai(model: Any, ids: torch.Tensor, new_tokens: int) -> list[float]:
    """Seconds of the prompt and of each new token."""
    import onnxruntime_genai as og

    parameters = og.GeneratorParams(model)
    length = ids.shape[1] + new_tokens + 1
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, parameters)
    seconds = []
    start = time.perf_counter()
    generator.append_tokens(ids[0].tolist())
    seconds.append(time.perf_counter() - start)
    generator.generate_next_token()  # chosen from the prompt's logits: no pass through the model
    for _ in range(new_tokens):
        start = time.perf_counter()
        generator.generate_next_token()
        seconds.append(time.perf_counter() - start)
    return seconds
