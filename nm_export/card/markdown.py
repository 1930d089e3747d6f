"""The model card: README.md of a published repository."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard

from nm_export.benchmark.model import ModelBenchmark
from nm_export.calibration.custom_scores import is_custom
from nm_export.calibration.documents import BUILTIN
from nm_export.card.facts import Facts
from nm_export.card.grid import make_grid
from nm_export.card.hand_edits import OWN_TEXT, new_card
from nm_export.card.loading import loading_section
from nm_export.card.measured import (
    benchmarks,
    slower,
    speed_table,
    task_rows,
    task_table,
    text_rows,
    text_table,
    written_rows,
    written_table,
)
from nm_export.card.metadata import base_models, card_metadata
from nm_export.card.tables import counted_kinds, layers_table, schemes_table, table, text_name, verification_table
from nm_export.installation import project_url

_BUSY = 1.5
"""Threads for each core above which speeds are those of something else too."""


def card_markdown(facts: Facts, pictures: Mapping[str, str]) -> ModelCard:
    """Return the card of a folder that has none.

    Args:
        facts: what the folder says about itself.
        pictures: path of each picture that there is, of `quality`, `speed` and `layers`.
    """
    return ModelCard(new_card(facts.name, card_sections(facts, pictures), card_metadata(facts)))


def card_sections(facts: Facts, pictures: Mapping[str, str]) -> dict[str, str]:
    """Return the sections of a card by name, in order; the arguments are those of `card_markdown`."""
    sections = {
        "introduction": [_introduction(facts)],
        OWN_TEXT: [facts.own_text or ""],
        "quality": _quality(facts, pictures),
        "speed": _speed(facts, pictures),
        "layers": _layers(facts, pictures),
        "load": loading_section(facts),
        "done": _done(facts),
        "verification": _verification(facts),
        "limits": _limits(facts),
        "origin": _origin(facts),
    }
    texts = {name: "\n\n".join(parts) for name, parts in sections.items()}
    return {name: text for name, text in texts.items() if text}


def _introduction(facts: Facts) -> str:
    macs = facts.provenance["linear_macs"]
    base = f"[{facts.base_id}](https://huggingface.co/{facts.base_id})" if facts.base_id else facts.base_name
    patterns = sorted(
        {(scheme["prune"], scheme["pattern"], scheme["grouping"]) for scheme in facts.sparsity["schemes"]}
    )
    kept = " or ".join(_kept(*pattern) for pattern in patterns)
    rewritten = facts.sparsity["rewritten"]
    added = f", and repairing what was dropped adds {macs['added_share']:.1%}" if macs["added_share"] else ""
    text = (
        f"{base} with N:M activation sparsity ([arXiv 2509.22166](https://arxiv.org/abs/2509.22166)): for every token, "
        f"the pruned layers use only {kept}. {macs['pruned_linears']} of the decoder's {macs['linears']} linear layers "
        f"are pruned, {macs['pruned_share']:.1%} of its linear multiply-accumulates; **{macs['saved_share']:.1%} of "
        f"them need not be computed**{added}. "
    )
    if rewritten:
        text += f"{len(rewritten)} weights differ from the base model's (`config.json` lists them under `rewritten`)."
    elif facts.from_recipe:
        text += (
            "All weights are the base model's own, bit for bit, and `model.set_sparsity(False)` is that model again."
        )
    else:
        text += (
            "It was made in Python from a model in memory, whose weights these are; `model.set_sparsity(False)` is "
            "that model again."
        )
    text += _in_short(facts)
    if not facts.numbers["verification"]:
        text += "\n\n**This model was not verified after it was written.**"
    return text


def _in_short(facts: Facts) -> str:
    """What it costs and what it brings, as far as that was measured, on a machine that had nothing else to do."""
    rows = text_rows(facts.numbers)
    if not rows:
        return ""
    row = next((row for row in rows if row.ratio.stderr is not None), rows[0])
    text = f"\n\nPerplexity on {row.name} is {row.sparse.format(2)}, the dense model's {row.dense.format(2)}"
    measured = [benchmark for benchmark in benchmarks(facts.numbers) if not _was_busy(benchmark)]
    ratios = [row.decode_ratio for benchmark in measured for row in benchmark.rows]
    return f"{text}; {_speed_in_words(ratios)}." if ratios else f"{text}."


def _speed_in_words(ratios: Sequence[float]) -> str:
    low, high = round(min(ratios), 2), round(max(ratios), 2)
    span = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
    if low >= 1:
        return f"decoding is {span} times as fast"
    if high < 1:
        return f"decoding is slower, {span} times the dense model's speed"
    return f"decoding is slower in some cases and faster in others, {span} times the dense model's speed (Speed)"


def _was_busy(benchmark: ModelBenchmark) -> bool:
    return benchmark.load is not None and benchmark.load > _BUSY


def _kept(prune: str, pattern: str, grouping: str) -> str:
    what = "inputs" if prune == "activations" else "weights"
    if pattern.endswith("%"):
        return f"{pattern} of the {what}"
    n, m = pattern.split(":")
    return f"{n} of every {m} {'neighbouring' if grouping == 'neighbours' else grouping} {what}"


def _quality(facts: Facts, pictures: Mapping[str, str]) -> Iterator[str]:
    yield "## Quality"
    texts, tasks, written = text_rows(facts.numbers), task_rows(facts.numbers), written_rows(facts.numbers)
    if not texts and not tasks:
        yield f"Quality was not measured{' (`evaluation.enabled` was off)' if facts.from_recipe else ''}."
    if texts:
        yield text_table(texts)
    if written:
        yield written_table(written)
    if tasks:
        yield task_table(tasks)
    if "quality" in pictures:
        yield f"![Bars: quality of the dense and of the sparse model]({pictures['quality']})"
    notes = [f"Perplexity: {row.about}." for row in texts]
    notes += dict.fromkeys(f"Written: {row.about}." for row in written)
    notes += dict.fromkeys(f"{row.about}." for row in tasks)
    if any(row.name == BUILTIN for row in texts):
        notes.append(f"{BUILTIN} is the language reference that comes with Python.")
    if written:
        notes.append(
            "Perplexity to the dense: how surprising the dense model finds what was written. Repeated: the share of "
            "runs of four tokens that were written before."
        )
    if any(e.stderr is not None for e in [*(row.ratio for row in texts), *(row.sparse for row in tasks)]):
        notes.append("Behind ± stands the standard error; ratios and drops are paired, on the same text and examples.")
    if notes:
        yield "\n".join(f"- {note}" for note in notes)
    yield from _quantization(facts.numbers)


def _quantization(numbers: dict[str, Any]) -> Iterator[str]:
    report = numbers.get("quantization")
    if report is None:
        return
    text = (
        f"In the ONNX model weights of linear layers are {report['precision']}, "
        f"{report['block_size']} neighbouring inputs to a scale"
    )
    mean = report["pruned_modules_mean"]
    if mean is not None:
        text += (
            f"; in pruned layers they are {mean['error']:.2%} from the float ones on average (relative Frobenius norm; "
            f"MatMulNBits of the same bits: {mean['matmul_nbits']:.2%})"
        )
    yield text + "."
    measured = (numbers.get("verification") or {}).get("against_dense")
    if measured:
        rows = [[n.replace("_", " "), f"{r['perplexity']:.3f}", f"{r['kl']:.4f}"] for n, r in measured.items()]
        yield table(["on the text of verification", "perplexity", "KL to the dense float model, nats"], rows)


def _speed(facts: Facts, pictures: Mapping[str, str]) -> Iterator[str]:
    yield "## Speed"
    measured = benchmarks(facts.numbers)
    if not measured:
        yield (
            "Not measured for this export. `nm-export bench FOLDER --json bench.json` measures it beside the dense "
            "model, and `nm-export card FOLDER --bench bench.json` shows it here."
            if facts.with_onnx
            else "Not measured: there is no ONNX model here."
        )
        return
    for benchmark in measured:
        if _was_busy(benchmark):
            yield (
                f"**The machine was busy** ({benchmark.load:.1f} threads wanted each core): the ratios are of runs in "
                "turn, the speeds themselves say little."
            )
        yield speed_table(benchmark)
        if cases := slower(benchmark):
            yield f"**Slower than the dense model**: {'; '.join(cases)}."
        yield (
            f"Weights {benchmark.precision} in both; medians of {benchmark.repeats} alternating runs of "
            f"{benchmark.new_tokens} new tokens, one sequence, compiled operators. {benchmark.machine}."
        )
    if "speed" in pictures:
        yield f"![Bars: speed of the dense and of the sparse model]({pictures['speed']})"
    yield ("Only the compiled operators of nm_export are fast. Without them nothing is gained over the dense model.")


def _layers(facts: Facts, pictures: Mapping[str, str]) -> Iterator[str]:
    layers = facts.numbers.get("layers")
    if not layers:
        return
    grid = make_grid(layers)
    if not grid.is_measured:
        return
    yield "## Where pruning costs"
    if "layers" in pictures:
        yield f"![Heat maps: retained energy and output error of every layer]({pictures['layers']})"
    yield layers_table(grid)
    yield (
        "Energy kept is `|kept z|^2 / |z|^2`, where `z` is the input of a layer after its shift; output error is "
        "`|y - y_dense| / |y_dense|`, both for the same input, so that each layer answers for itself only. A dense "
        f"layer keeps 100 % and has an error of 0. Measured on {layers['text']}, which calibration has not seen."
    )


def _done(facts: Facts) -> Iterator[str]:
    yield "## What was done"
    yield schemes_table(facts.sparsity["schemes"])
    layers = facts.numbers.get("layers")
    dense = [name for name, score in layers["modules"].items() if score["state"] == "dense"] if layers else []
    if dense:
        yield f"Dense as before: {counted_kinds(dense)}, the embeddings and the output layer."
    calibration = facts.recipe.calibration
    if facts.from_recipe:
        yield (
            f"Calibrated on {calibration.num_samples} sequences of {calibration.sequence_length} tokens of "
            f"{text_name(calibration.dataset)} ({calibration.split})."
        )
    else:
        yield "Made in Python; the texts that it has seen were not written down."
    custom = sorted({s["score"].removeprefix("custom:") for s in facts.sparsity["schemes"] if is_custom(s["score"])})
    if custom:
        yield f"Scores of the author's own, one number for each input channel: {', '.join(custom)}."
    yield from _learning(facts.numbers.get("learning"))


def _learning(report: dict[str, Any] | None) -> Iterator[str]:
    if report is None:
        return
    kept = sum(part["kept"] for part in report["held_out"].values())
    if not kept:
        yield "Training made held-out text worse, and the starting values were kept."
        return
    parts = "the whole model" if report["mode"] == "end_to_end" else f"{kept} of {len(report['held_out'])} blocks"
    yield (
        f"Trained ({report['mode'].replace('_', ' ')}, {len(report['losses'])} steps); held-out text kept the result "
        f"for {parts}."
    )


def _verification(facts: Facts) -> Iterator[str]:
    report = facts.numbers["verification"]
    yield "## Verification"
    if not report:
        yield "None: `verify.enabled` was off." if facts.from_recipe else "None: nothing has compared this folder yet."
        return
    yield verification_table(report)
    yield (
        "Before anything was published, every form was compared with the calibrated model in memory, on held-out text. "
        "In each pruned layer the channels that are kept must be the same, and the outputs equal to rounding; the "
        "whole model may differ by little more than rounding makes it differ from itself, which the last line shows."
    )


def _limits(facts: Facts) -> Iterator[str]:
    yield "## Limits"
    texts = list(dict.fromkeys(row.name for row in text_rows(facts.numbers)))
    tasks = list(dict.fromkeys(row.task for row in task_rows(facts.numbers)))
    measured = " and ".join([*texts, *tasks])
    continued = list(dict.fromkeys(row.name for row in written_rows(facts.numbers)))
    written = (
        f"What it writes was measured on {' and '.join(continued)} (Quality)."
        if continued
        else "What it writes was not measured."
    )
    limits = [
        f"Quality was measured on {measured} only." if measured else "Quality was not measured.",
        "Expect free generation to suffer more than perplexity and multiple choice: these read a given text, a model "
        f"that generates reads its own, errors included. {written} Measure the task that you want it for.",
        "The sparsity was calibrated on one text (What was done); other languages and subjects may lose more."
        if facts.from_recipe
        else "Languages and subjects that it was not calibrated on may lose more.",
        "Everything that limits the base model limits this one.",
    ]
    if facts.with_onnx:
        limits.append("The ONNX model computes in float32 on a CPU.")
    if any(s["score"] == "clact_noncausal" for s in facts.sparsity["schemes"]):
        limits.append("The score clact_noncausal looks at later tokens too: perplexity is measured with hindsight.")
    yield "\n".join(f"- {limit}" for limit in limits)


def _origin(facts: Facts) -> Iterator[str]:
    base = facts.provenance["base_model"]
    yield "## Origin, recipe and licence"
    words = [f"Base model: {facts.base_name}"]
    words += [f"revision {base['revision']}"] if base.get("revision") else []
    words += [f"weights {base['dtype']}"] if base.get("dtype") else []
    lineage = [name for name in base_models(facts) if name != facts.base_id]
    words += [f"made from {' and '.join(lineage)}"] if lineage else []
    yield f"{', '.join(words)}; {_terms(facts)} The code is Apache-2.0."
    url = project_url()
    of_the_project = f" ([nm_export]({url}))" if url else ""
    versions = ", ".join(f"{package} {version}" for package, version in facts.provenance["versions"].items())
    if facts.from_recipe:
        yield (
            f"Made by `nm-export recipe.yaml`{of_the_project} with {versions}. `nm_export.json` names the base model's "
            "files and the texts by hash, `measurements.json` holds all numbers. The recipe, without what is default:"
        )
    else:
        yield (
            f"Made in Python and written by `nm_export.save`{of_the_project} with {versions}. `measurements.json` "
            "holds all numbers. The schemes as a recipe, without what is default:"
        )
    recipe = facts.short_recipe.strip()
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", recipe))])
    yield f"{fence}yaml\n{recipe}\n{fence}"
    yield (
        "The repository runs code of its own (`trust_remote_code=True`). It is that of nm_export "
        f"{facts.provenance['versions'].get('nm_export', '')}, byte for byte:"
    )
    yield table(["file", "SHA-256"], [[f"`{n}`", f"`{h}`"] for n, h in facts.code_sha256.items()], numbers_from=2)


def _terms(facts: Facts) -> str:
    """The licence of the model: the publisher's word, or else the base model's."""
    base, own = facts.provenance["base_model"], facts.recipe.publish
    of_base = base.get("license_name") or base.get("license")
    if own.license is None:
        terms = of_base or "see the base model's"
        return f"licence: {terms}, which holds for this model too."
    name = own.license_name or own.license
    link = f" ({own.license_link})" if own.license_link else ""
    return f"licence of this model: {name}{link}; of the base model: {of_base or 'see there'}."
