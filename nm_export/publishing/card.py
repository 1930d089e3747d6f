"""The model card: README.md of a published repository."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

_CARD = """---
{metadata}
---

# {name}

{base} with N:M activation sparsity: for every token, {patterns}. {weights} {saved:.0%} of the
multiply-accumulates of its decoder's linear layers need not be computed ({pruned:.0%} of them belong to pruned layers).

| perplexity on held-out text | dense | sparse | ratio |
| --- | --- | --- | --- |
| {text} | {dense} | {sparse} | {ratio} |

## Load it

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{repository}", trust_remote_code=True)
```

Needs `torch` and `transformers` only. PyTorch prunes the inputs and then multiplies densely: the speed is in ONNX
Runtime.
{onnx}
## What was done

| modules | pattern | score | shift | variance correction | outputs | phase |
| --- | --- | --- | --- | --- | --- | --- |
{schemes}
{learning}
`recipe.yaml` repeats it: `nm-export recipe.yaml`. `nm_export.json` names the versions, and the base model's files and
the text by hash; `measurements.json` holds what was measured. The method follows [arXiv 2509.22166](https://arxiv.org/abs/2509.22166).
Sparse generation degrades more than perplexity suggests; measure it on your own task.
"""

_ONNX = """
```python
from nm_export.onnx import NMSparseORTModelForCausalLM  # pip install "nm_export[onnx]"

model = NMSparseORTModelForCausalLM.from_pretrained("{repository}")
```

{genai}Without the compiled operators of `nm_export` the graph runs through
standard operators: the same numbers, slowly.
{quantization}"""


def model_card(
    *, name: str, repository: str, provenance: dict[str, Any], sparsity: dict[str, Any], numbers: dict[str, Any]
) -> str:
    """Return the text of README.md.

    Args:
        name: title.
        repository: what the loading snippets name: a repository id or a folder.
        provenance: `nm_export.json`.
        sparsity: `NMSparseConfig.sparsity`.
        numbers: `measurements.json`.
    """
    base = provenance["base_model"]
    hub_id = base.get("hub_id")
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sparsity", "nm-sparsity", "activation-sparsity", *(["onnx"] if numbers["onnx"] else [])],
        base_model=hub_id,
        license=base.get("license"),
    )
    quality = numbers.get("perplexity")
    patterns = sorted({(scheme["prune"], scheme["pattern"]) for scheme in sparsity["schemes"]})
    kept = " or ".join(_kept(*pattern) for pattern in patterns)
    return _CARD.format(
        metadata=metadata.to_yaml(),
        name=name,
        base=f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else _local_name(base["source"]),
        patterns=f"the pruned layers use only {kept}",
        saved=provenance["linear_macs"]["saved_share"],
        pruned=provenance["linear_macs"]["pruned_share"],
        text=quality["text"] if quality else "not measured",
        dense=f"{quality['dense']:.3f}" if quality else "",
        sparse=f"{quality['sparse']:.3f}" if quality else "",
        ratio=f"{quality['ratio']:.3f}" if quality else "",
        repository=repository,
        onnx=_onnx(repository, numbers) if numbers["onnx"] else "",
        schemes="\n".join(_row(scheme) for scheme in sparsity["schemes"]),
        weights=_weights(sparsity["rewritten"]),
        learning=_learning(numbers.get("learning")),
    )


def _onnx(repository: str, numbers: dict[str, Any]) -> str:
    genai = "The folder `onnx` opens in `onnxruntime_genai` too. " if numbers["genai"] else ""
    return _ONNX.format(repository=repository, genai=genai, quantization=_quantization(numbers))


def _local_name(source: str) -> str:
    # the path of a folder or file would tell readers about the author's machine, and nothing about the model
    return source if source.startswith("sample:") else Path(source).name


def _kept(prune: str, pattern: str) -> str:
    what = "inputs" if prune == "activations" else "weights"
    if pattern.endswith("%"):
        return f"{pattern} of the {what}"
    return "{} of every {} neighbouring {}".format(*pattern.split(":"), what)


def _weights(rewritten: list[str]) -> str:
    if not rewritten:
        return "Weights are the base model's own;"
    return f"{len(rewritten)} of its weights differ from the base model's (`config.json` lists them under `rewritten`);"


def _quantization(numbers: dict[str, Any]) -> str:
    report = numbers.get("quantization")
    if report is None:
        return ""
    text = f"\nWeights of its linear layers are {report['precision']}, {report['block_size']} to a scale"
    mean = report["pruned_modules_mean"]
    if mean is not None:
        text += (
            f"; in pruned layers they are {mean['error']:.2%} from the float ones on average (relative Frobenius norm; "
            f"MatMulNBits of the same bits: {mean['matmul_nbits']:.2%})"
        )
    measured = (numbers.get("verification") or {}).get("against_dense")
    if measured:
        parts = (f"{result['perplexity']:.3f} {name.replace('_', ' ')}" for name, result in measured.items())
        text += f". Perplexity on the text of verification: {', '.join(parts)}"
    return f"{text}.\n"


def _learning(report: dict[str, Any] | None) -> str:
    if report is None:
        return ""
    kept = sum(part["kept"] for part in report["held_out"].values())
    parts = "the whole model" if report["mode"] == "end_to_end" else f"{kept} of {len(report['held_out'])} blocks"
    steps = len(report["losses"])
    return (
        f"\nTrained ({report['mode'].replace('_', ' ')}, {steps} steps); held-out text kept the result for {parts}.\n"
        if kept
        else "\nTraining made held-out text worse, and the starting values were kept.\n"
    )


def _row(scheme: dict[str, Any]) -> str:
    kinds: dict[str, int] = {}
    for module in scheme["modules"]:
        kind = module.rsplit(".", 1)[-1]
        kinds[kind] = kinds.get(kind, 0) + 1
    modules = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    score = scheme["score"]
    if score == "weight_norm" and scheme["score_exponent"] != 1:
        score = f"{score} ^ {scheme['score_exponent']}"
    correction = "yes" if scheme["variance_correction"] else "no"
    outputs = [
        word
        for word, used in (
            ("scale", scheme["output_scale"]),
            (f"{scheme['output_bias']} bias", scheme["output_bias"] != "none"),
            (f"residual of rank {scheme['residual_rank']}", scheme["residual_rank"]),
        )
        if used
    ]
    if scheme["prune"] == "weights":
        return f"| {modules} | {scheme['pattern']} of the weights | | | | | |"
    return (
        f"| {modules} | {scheme['pattern']} | {score} | {scheme['shift']} | {correction} | "
        f"{', '.join(outputs) or 'as they are'} | {scheme['phase']} |"
    )
