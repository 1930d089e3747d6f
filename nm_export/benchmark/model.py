"""Prefill and decode of an exported model and of its dense twin, alternating in one process."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nm_export.benchmark.machine import available_cores, processor_name
from nm_export.benchmark.report import Report, table
from nm_export.exported import find_exported
from nm_export.loading import load_exported
from nm_export.onnx.extras import require
from nm_export.progress import doing, track
from nm_export.quiet import quiet_transformers
from nm_export.versions import installed_versions

DEFAULT_PROMPTS = (64, 256)
_FORMS = ("dense", "sparse")
_PACKAGES = ("nm_export", "onnxruntime", "onnxruntime-genai")


@dataclass(frozen=True)
class Row:
    """Medians for one runtime and one length of prompt; seconds.

    A decode step follows the prompt, so that the prompt's length is that of its context.
    """

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
class ModelBenchmark(Report):
    """The result of `benchmark_model` or `benchmark_decoder`.

    Attributes:
        title: what was timed.
        precision: of its weights, and of the dense twin's.
        rows: by runtime and length of prompt.
        repeats: runs of each, of which medians count.
        new_tokens: made after each prompt.
        machine: where, with versions.
        command: that measures it again.
        recipe_sha256: of the recipe of the folder that was timed, if it has one.
        load: threads that wanted to run in the minute before, for each core; None where the system does not say.
    """

    title: str
    precision: str
    rows: tuple[Row, ...]
    repeats: int
    new_tokens: int
    machine: str
    command: str
    recipe_sha256: str | None = None
    load: float | None = None

    kind = "model"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelBenchmark":
        """Read what `to_dict` gave."""
        own = {key: value for key, value in values.items() if key != "kind"}
        return cls(**{**own, "rows": tuple(Row(**row) for row in values["rows"])})

    def to_markdown(self) -> str:
        """Return the table, ratio first, speeds in tokens per second."""
        header = ["runtime", "prompt", "decode, ratio", "sparse", "dense", "prefill, ratio", "sparse", "dense"]
        rows = [
            [
                row.runtime,
                str(row.prompt),
                f"**{row.decode_ratio:.2f}**",
                f"{1 / row.sparse_decode:.1f}",
                f"{1 / row.dense_decode:.1f}",
                f"**{row.prefill_ratio:.2f}**",
                f"{row.prompt / row.sparse_prefill:.0f}",
                f"{row.prompt / row.dense_prefill:.0f}",
            ]
            for row in self.rows
        ]
        return (
            f"**{self.title}, {self.precision}**\n\n{table(header, rows)}\n\n"
            f"Tokens per second, medians of {self.repeats} alternating runs of {self.new_tokens} new tokens; the dense "
            f"twin has the same weights in the same precision. Machine: {self.machine}."
        )


def benchmark_model(
    folder: str | Path,
    *,
    model: Any = None,
    title: str | None = None,
    prompts: Sequence[int] = DEFAULT_PROMPTS,
    new_tokens: int = 24,
    repeats: int = 5,
    command: str = "",
) -> ModelBenchmark:
    """Time an exported folder against a dense graph of the same weights from the same exporter.

    Both have the precision of the folder and run in ONNX Runtime (this package's class, compiled operators) and, where
    it runs them, in onnxruntime-genai, on random tokens: speed does not depend on the text.

    Args:
        folder: exported folder with `onnx/model.onnx`, or the name of a published repository.
        model: its sparse model, if that is in memory already.
        title: what the result is called instead of by the folder's name.
        prompts: lengths of prompt, in tokens.
        new_tokens: tokens generated after each prompt.
        repeats: runs of each; the median counts.
        command: that called this, for the record.

    Raises:
        UserError: the folder was not exported, or the compiled operators or onnxruntime-genai are not installed.
    """
    require("onnxruntime", "onnx")
    name = Path(folder).resolve().name
    folder = find_exported(folder).resolve()
    if _runs_in_genai(folder):
        require("onnxruntime_genai", "genai")
    load = os.getloadavg()[0] / available_cores() if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory(prefix="nm_export-bench-") as scratch:
        if model is None:
            with quiet_transformers(), doing(f"Loading {folder}"):
                model, _, _ = load_exported(folder)
        vocabulary = int(model.config.vocab_size)
        with doing("Making the dense twin"):
            precision, dense = _dense_twin(model, folder, Path(scratch) / "dense")
        del model
        rows = compare_folders(dense, folder, vocabulary, prompts=prompts, new_tokens=new_tokens, repeats=repeats)
    return ModelBenchmark(
        title=title or name,
        precision=precision,
        rows=rows,
        repeats=repeats,
        new_tokens=new_tokens,
        machine=describe_machine(),
        command=command,
        recipe_sha256=_recipe_sha256(folder),
        load=load,
    )


def compare_folders(
    dense: Path, sparse: Path, vocabulary: int, *, prompts: Sequence[int], new_tokens: int, repeats: int
) -> tuple[Row, ...]:
    """Time two folders of equal weights in both runtimes; the arguments are those of `benchmark_model`."""
    folders = dict(zip(_FORMS, (dense, sparse), strict=True))
    rows: list[Row] = []
    runtimes: list[tuple[str, Callable[[Path], Any], Callable[[Any, torch.Tensor, int], list[float]]]] = [
        ("ONNX Runtime", _open_ort, _run_ort)
    ]
    if _runs_in_genai(sparse):
        runtimes.append(("onnxruntime-genai", _open_genai, _run_genai))
    for runtime, open_model, run in runtimes:
        models = {form: open_model(folders[form]) for form in _FORMS}
        for prompt in prompts:
            ids = torch.randint(0, vocabulary, (1, prompt), generator=torch.Generator().manual_seed(prompt))
            rows.append(_row(runtime, models, run, ids, new_tokens, repeats))
        del models
    return tuple(rows)


def describe_machine() -> str:
    """Processor, cores and versions: sessions of models take all cores."""
    versions = ", ".join(f"{package} {version}" for package, version in installed_versions(_PACKAGES).items())
    return f"{processor_name()}, {available_cores()} cores; {versions}"


def _recipe_sha256(folder: Path) -> str | None:
    """By which a card knows its model; None for a folder that was made without a recipe."""
    try:
        value = json.loads((folder / "nm_export.json").read_text(encoding="utf-8"))["recipe_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(value)


def _dense_twin(model: Any, folder: Path, target: Path) -> tuple[str, Path]:
    """The precision of the folder's weights, and a folder of the same weights and precision that prunes nothing."""
    from nm_export.onnx.dense_graph import build_dense_twin
    from nm_export.onnx.stored_weights import stored_format

    form = stored_format(folder / "onnx" / "model.onnx")
    precision = "fp32" if form is None else f"{form.name}, block {form.block_size}"
    return precision, build_dense_twin(model, folder, target)


def _row(
    runtime: str,
    models: dict[str, Any],
    run: Callable[[Any, torch.Tensor, int], list[float]],
    ids: torch.Tensor,
    new_tokens: int,
    repeats: int,
) -> Row:
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


def _runs_in_genai(folder: Path) -> bool:
    return (folder / "onnx" / "genai_config.json").is_file()


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
