"""What a run would do, found out without loading a weight or writing a file."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from nm_export.finished import made_by
from nm_export.plan import Plan, make_plan
from nm_export.publishing.base_weights import check_source
from nm_export.publishing.folder import check_target
from nm_export.recipe import Recipe, Scheme
from nm_export.sources import SourceUnavailableError, load_config_only, resolve_source


@dataclass(frozen=True)
class DryRun:
    """The answer to `--dry-run`.

    Attributes:
        recipe: the recipe, resolved.
        target: folder that would be written.
        plan: which linears would be pruned; None when the model's configuration could not be had.
        dtype: dtype of the weights that would be written.
        parameters: number of parameters, or 0.
        steps: what would happen, in order.
        unchecked: what could not be found out, and why.
    """

    recipe: Recipe
    target: Path
    plan: Plan | None
    dtype: str
    parameters: int
    steps: tuple[str, ...]
    unchecked: tuple[str, ...] = field(default=())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield f"Dry run of {self.recipe.model.source}: nothing is loaded and nothing is written."
        if self.plan:
            yield _table(self.plan)
            yield (
                f"{len(self.plan.pruned)} of {len(self.plan.linears)} decoder linears are pruned, "
                f"{self.plan.pruned_share:.1%} of their MACs; {self.plan.saved_share:.1%} need not be computed."
            )
        yield "\n[bold]It would[/bold]"
        yield "\n".join(f"  {number}. {step}" for number, step in enumerate(self.steps, 1))
        if self.unchecked:
            yield "\n[bold]It could not check[/bold]"
            yield "\n".join(f"  - {reason}" for reason in self.unchecked)


def dry_run(
    recipe: Recipe,
    *,
    output_dir: str | Path | None = None,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    skip_onnx: bool = False,
    overwrite: bool = False,
) -> DryRun:
    """Resolve a recipe against its model's configuration, as far as that can be had; see `pipeline.run`.

    Raises:
        UserError: the recipe does not fit the model, or the output folder is in the way.
    """
    target = recipe.folder(output_dir).resolve()
    check_target(target, overwrite=overwrite or made_by(target, recipe))
    unchecked = []
    if recipe.publish.weights == "reference":
        check_source(recipe.model)
        if resolve_source(recipe.model).kind == "hub":
            unchecked.append(f"whether {recipe.model.source} has safetensors files, to which weights can be left")
    plan: Plan | None = None
    dtype, parameters = str(recipe.model.dtype), 0
    try:
        plan, dtype, parameters = _resolve(recipe)
    except SourceUnavailableError as error:
        unchecked.append(f"which modules the recipe matches, and whether M divides their inputs: {error}")
    if push_to_hub:
        unchecked.append("whether you are logged in to the Hub and may write there: a dry run does not ask")
    steps = tuple(
        _steps(recipe, target, plan, dtype, parameters, push_to_hub, repo_id, revision, private, create_pr, skip_onnx)
    )
    return DryRun(recipe, target, plan, dtype, parameters, steps, tuple(unchecked))


def _resolve(recipe: Recipe) -> tuple[Plan, str, int]:
    config = load_config_only(recipe.model)
    dtype = config.dtype if recipe.model.dtype == "auto" else getattr(torch, recipe.model.dtype)
    dtype = dtype or torch.float32
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        plan = make_plan(model, recipe)
        parameters = sum(parameter.numel() for parameter in model.parameters())
    return plan, str(dtype).removeprefix("torch."), parameters


def _steps(
    recipe: Recipe,
    target: Path,
    plan: Plan | None,
    dtype: str,
    parameters: int,
    push_to_hub: bool,
    repo_id: str | None,
    revision: str | None,
    private: bool,
    create_pr: bool,
    skip_onnx: bool,
) -> Iterator[str]:
    text, held_out = recipe.calibration, recipe.held_out
    yield f"load {recipe.model.source}" + (f": {parameters / 1e6:,.0f} M parameters, {dtype}" if parameters else "")
    yield (
        f"calibrate {len(plan.pruned) if plan else 'the matching'} linears at {recipe.sparsity.pattern} on "
        f"{text.num_samples} x {text.sequence_length} tokens of {text.dataset}"
    )
    if recipe.sparsity.budget is not None:
        yield (
            f"measure the damage that pruning each of them does, and prune {recipe.sparsity.budget:.0%} of the "
            "linears' MACs where it does least (the table above shows the candidates)"
        )
    learning = recipe.learning
    if learning.mode != "none":
        yield (
            f"train {', '.join(learning.parameters)} ({learning.mode.replace('_', ' ')}) on {learning.epochs} x "
            f"{learning.num_samples} x {learning.sequence_length} tokens"
        )
    size = getattr(torch, dtype).itemsize * parameters / 1e9 if parameters else 0
    if recipe.publish.weights == "reference":
        yield f"write {target}: new weights only; the others stay in {recipe.model.source}"
    else:
        yield f"write {target}" + (f": {size:,.2f} GB of safetensors" if size else "")
    if recipe.onnx.enabled and not skip_onnx:
        yield f"export it to {target}/onnx, weights of {recipe.onnx.precision}" + (
            f": {4 * parameters / 1e9:,.2f} GB" if parameters and recipe.onnx.precision == "fp32" else ""
        )
    if recipe.verify.enabled:
        yield "verify that the reloaded model and ONNX Runtime keep the same channels; stop if they do not"
    if held_out.enabled:
        yield (
            f"measure dense and sparse perplexity on {held_out.num_samples} x {held_out.sequence_length} tokens of "
            f"{held_out.dataset} ({held_out.split})"
        )
    if push_to_hub:
        name = repo_id or recipe.publish.repo_id or recipe.name
        branch = revision or recipe.publish.revision
        how = "as a pull request " if create_pr or recipe.publish.create_pr else ""
        where = "" if branch == "main" else f", branch {branch}"
        visibility = "private" if private else "public"
        yield f"publish the folder {how}as {name} ({visibility}) on the Hugging Face Hub{where}"


def _table(plan: Plan) -> Table:
    table = Table(
        "modules", "inputs x outputs", "pattern", "score", "shift", "variance", "phase", "share of MACs", box=None
    )
    total = sum(linear.macs for linear in plan.linears)
    rows: dict[Any, list[int]] = {}
    for linear in plan.linears:
        kind = linear.name.rsplit(".", 1)[-1]
        rows.setdefault((kind, linear.in_features, linear.out_features, linear.scheme), []).append(linear.macs)
    for (kind, inputs, outputs, scheme), macs in rows.items():
        how = _words(scheme) if scheme else ("dense", "", "", "", "")
        table.add_row(f"{len(macs)} {kind}", f"{inputs} x {outputs}", *how, f"{sum(macs) / total:.1%}")
    return table


def _words(scheme: Scheme) -> tuple[str, ...]:
    score = scheme.score if scheme.score_exponent == 1 else f"{scheme.score}^{scheme.score_exponent:g}"
    variance = "corrected" if scheme.variance_correction else "as it is"
    return scheme.pattern, score, scheme.shift, variance, scheme.phase
