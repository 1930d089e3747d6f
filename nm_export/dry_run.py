"""What a run would do, found out without loading a weight or writing a file."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType

from nm_export.calibration.documents import is_at_hand, load_text
from nm_export.calibration.text import COUNTED, is_long_enough
from nm_export.card.own_text import read_own_text
from nm_export.compute_dtype import ComputeType, choose_compute_type, name_of
from nm_export.errors import UserError
from nm_export.estimates.costs import Cost, Disk, costs, disk
from nm_export.estimates.rates import Rates, measure_rates
from nm_export.estimates.shapes import Shapes, find_shapes
from nm_export.finished import made_by
from nm_export.onnx.base_graph import AUTHORS, check_positions
from nm_export.plan import Plan
from nm_export.preparation import learning_text
from nm_export.publishing.base_weights import check_source
from nm_export.publishing.folder import check_target
from nm_export.publishing.settings import check_publishing, publish_settings
from nm_export.recipe import PublishSection, Recipe, Scheme, TextSection
from nm_export.sizes import size_in_words as _size
from nm_export.sizes import smaller
from nm_export.sources import SourceUnavailableError, load_config_only, load_tokenizer_only, resolve_source
from nm_export.tables import Columns, Sentences, time_in_words


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        disk: what it would write.
        costs: time and memory of its stages.
        rates: this machine's speed, on which the times rest.
        compute: the type that a run would compute in.
    """

    disk: Disk
    costs: tuple[Cost, ...]
    rates: Rates
    compute: ComputeType

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return sum(cost.seconds for cost in self.costs)

    @property
    def memory(self) -> int:
        """Bytes of the stage that needs most."""
        return max(cost.memory for cost in self.costs)

    @property
    def held(self) -> int:
        """Bytes without which no run ends: of mapped files, the system takes memory back."""
        return max(cost.held for cost in self.costs)


@dataclass(frozen=True)
class DryRun:
    """The answer to `--dry-run`.

    Attributes:
        recipe: the recipe, resolved.
        target: folder that would be written.
        shapes: of the sparse model; None when the model's configuration could not be had.
        estimate: of a run; None likewise.
        steps: what would happen, in order.
        unchecked: what could not be found out, and why.
        every_module: whether every linear is listed by name.
    """

    recipe: Recipe
    target: Path
    shapes: Shapes | None
    estimate: Estimate | None
    steps: tuple[str, ...]
    unchecked: tuple[str, ...] = field(default=())
    every_module: bool = False

    @property
    def plan(self) -> Plan | None:
        """Which linears would be pruned."""
        return self.shapes.plan if self.shapes else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield Sentences(f"Dry run of {self.recipe.model.source}: nothing is loaded and nothing is written.")
        if self.shapes:
            yield ""
            yield _table(self.shapes.plan, self.every_module)
            yield ""
            yield from map(Sentences, _about_macs(self.shapes.plan))
            yield from map(Sentences, _about_bytes(self.shapes))
        yield "\n[bold]It would[/bold]"
        for number, step in enumerate(self.steps, 1):
            yield Sentences(step, f"{number:3}. ", "     ")
        if self.estimate:
            yield "\n[bold]It would take[/bold]"
            yield from _about_costs(self.estimate)
        if self.unchecked:
            yield "\n[bold]It could not check[/bold]"
            for reason in self.unchecked:
                yield Sentences(reason, "  - ", "    ")


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
    every_module: bool = False,
) -> DryRun:
    """Resolve a recipe against its model's configuration, as far as that can be had; see `pipeline.run`.

    This machine's speed is measured for a second or two, with a file of 32 MB that is removed again.

    Args:
        recipe: what a run would do.
        output_dir: as for `pipeline.run`, as are the others but the last.
        push_to_hub: see there.
        repo_id: see there.
        revision: see there.
        private: see there.
        create_pr: see there.
        skip_onnx: see there.
        overwrite: see there.
        every_module: whether to list every linear by its name, not only their kinds.

    Raises:
        UserError: the recipe does not fit the model, or the output folder is in the way.
    """
    check_publishing(recipe, push_to_hub, repo_id=repo_id, revision=revision, private=private, create_pr=create_pr)
    target = recipe.folder(output_dir).resolve()
    check_target(target, overwrite=overwrite or made_by(target, recipe))
    unchecked = []
    read_own_text(recipe.publish.card_text)
    if recipe.publish.weights == "reference":
        check_source(recipe.model)
        if resolve_source(recipe.model).kind == "hub":
            unchecked.append(f"whether {recipe.model.source} has safetensors files, to which weights can be left")
    shapes = estimate = None
    try:
        shapes = find_shapes(recipe)
        if recipe.onnx.enabled and not skip_onnx:
            check_positions(load_config_only(recipe.model))
    except SourceUnavailableError as error:
        unchecked.append(f"which modules the recipe matches, and whether M divides their inputs: {error}")
    with_onnx = recipe.onnx.enabled and not skip_onnx
    if shapes is not None:
        compute = choose_compute_type(recipe.model.compute_dtype, shapes.dtype, shapes.parameters)
        rates = measure_rates(compute.computed, target.parent)
        stages = costs(recipe, shapes, rates, with_onnx=with_onnx, computed=compute.computed)
        estimate = Estimate(disk(recipe, shapes, with_onnx=with_onnx), stages, rates, compute)
    unchecked += _check_texts(recipe)
    publishing = None
    if push_to_hub:
        publishing = publish_settings(
            recipe, repo_id=repo_id, revision=revision, private=private, create_pr=create_pr, overwrite=overwrite
        )
        unchecked.append("whether you are logged in to the Hub and may write there: a dry run does not ask")
    steps = tuple(_steps(recipe, target, shapes, estimate, publishing, with_onnx))
    return DryRun(recipe, target, shapes, estimate, steps, tuple(unchecked), every_module)


def _check_texts(recipe: Recipe) -> Iterator[str]:
    """Look whether the texts are long enough; yield what could not be found out.

    Raises:
        UserError: a text cannot be read, or is too short: what a run would say.
    """
    texts: list[TextSection] = [recipe.calibration, recipe.held_out]
    if recipe.learning.mode != "none":
        texts.append(learning_text(recipe))
    tokenizer, missing = None, "nothing can be counted without the model's tokenizer"
    try:
        tokenizer = load_tokenizer_only(recipe.model)
    except SourceUnavailableError:  # said already, of the model
        pass
    except UserError as error:
        missing = str(error)
    for text in texts:
        what = f"whether {text.dataset} ({text.split}) is long enough for {text.size_key}"
        if not is_at_hand(text):
            yield f"{what}: a dry run fetches no text"
        elif tokenizer is None:
            next(load_text(text, str), None)  # a text that is not there is missed without a tokenizer
            yield f"{what}: {missing}"
        elif not is_long_enough(tokenizer, text):
            yield f"{what}: a dry run counts no more than {COUNTED:,} tokens"


def _steps(
    recipe: Recipe,
    target: Path,
    shapes: Shapes | None,
    estimate: Estimate | None,
    publishing: PublishSection | None,
    with_onnx: bool,
) -> Iterator[str]:
    text, held_out = recipe.calibration, recipe.held_out
    yield f"load {recipe.model.source}" + (
        f": {shapes.parameters / 1e6:,.1f} M parameters, {_dtype(shapes)}, {_size(shapes.weight_bytes)}"
        if shapes
        else ""
    )
    if estimate and estimate.compute.why:
        yield f"compute in {name_of(estimate.compute.computed)}: {estimate.compute.why}"
    yield (
        f"calibrate {len(shapes.plan.pruned) if shapes else 'the matching'} linears at {recipe.sparsity.pattern} on "
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
    size = f": {_size(estimate.disk.safetensors)} of safetensors" if estimate else ""
    if recipe.publish.weights == "reference":
        yield f"write {target}{size}: new weights only; the others stay in {recipe.model.source}"
    else:
        yield f"write {target}{size}"
    if with_onnx:
        size = f": {_size(estimate.disk.onnx)}" if estimate else ""
        yield f"export it to {target}/onnx{_exporter(recipe, shapes)}, weights of {recipe.onnx.precision}{size}"
    if recipe.verify.enabled:
        yield "verify that the reloaded model and ONNX Runtime keep the same channels; stop if they do not"
    if held_out.enabled:
        yield (
            f"measure dense and sparse perplexity on {held_out.num_samples} x {held_out.sequence_length} tokens of "
            f"{held_out.dataset} ({held_out.split}), and what each layer keeps of its input"
        )
    if recipe.benchmark.enabled and with_onnx:
        yield f"time it beside the dense model, after prompts of {', '.join(map(str, recipe.benchmark.prompts))} tokens"
    if publishing:
        how = "as a pull request " if publishing.create_pr else ""
        where = "" if publishing.revision == "main" else f", branch {publishing.revision}"
        visibility = "private" if publishing.private else "public"
        size = f": {_size(estimate.disk.safetensors + estimate.disk.onnx)}" if estimate else ""
        yield f"publish the folder {how}as {publishing.repo_id} ({visibility}) on the Hugging Face Hub{where}{size}"
        if publishing.overwrite:
            yield "replace there what nm-export did not write"
        if places := recipe.places():
            yield f"show there where files lie here: {', '.join(places)} (relative paths would not)"


def _exporter(recipe: Recipe, shapes: Shapes | None) -> str:
    """Whose work the graph would be, as far as that is known."""
    name = recipe.onnx.exporter
    if name == "auto":
        if shapes is None:
            return ""
        name = "builder" if shapes.has_builder else "generic"
    return f" with {AUTHORS[name]}"


def _table(plan: Plan, every_module: bool) -> Columns:
    what = "module" if every_module else "modules"
    header = (
        what,
        "inputs x outputs",
        "pattern",
        "score",
        "shift",
        "variance",
        "phase",
        "outputs",
        "share of MACs",
    )
    total = sum(linear.macs for linear in plan.linears)
    groups: dict[Any, list[int]] = {}
    for linear in plan.linears:
        name = linear.name if every_module else linear.name.rsplit(".", 1)[-1]
        groups.setdefault((name, linear.in_features, linear.out_features, linear.scheme), []).append(linear.macs)
    rows = []
    for (name, inputs, outputs, scheme), macs in groups.items():
        how = _words(scheme) if scheme else ("dense", "", "", "", "", "")
        first = name if every_module else f"{len(macs)} {name}"
        rows.append((first, f"{inputs} x {outputs}", *how, f"{sum(macs) / total:.1%}"))
    return Columns(header, rows, numbers_from=len(header) - 1)


def _about_macs(plan: Plan) -> Iterator[str]:
    total = sum(linear.macs for linear in plan.linears)
    saved = sum(linear.pruned_macs for linear in plan.linears)
    yield (
        f"{len(plan.pruned)} of {len(plan.linears)} decoder linears are pruned, {plan.pruned_share:.1%} of their MACs; "
        f"{plan.saved_share:.1%} need not be computed ({saved / 1e6:,.1f} of {total / 1e6:,.1f} million a token)"
        + (f", and residuals add {plan.added_share:.1%}." if plan.added_share else ".")
    )


def _about_bytes(shapes: Shapes) -> Iterator[str]:
    by_dtype = ", ".join(f"{number:,} bytes of {name}" for name, number in shapes.bytes_by_dtype().items())
    new = sum(tensor.numel for tensor in shapes.new.values())
    added = f"{len(shapes.new)} tensors with {new:,} numbers are new" if new else "no tensor is new"
    yield (f"In safetensors: {by_dtype}; {added}. Whole file: {shapes.safetensors_bytes():,} bytes.")


def _about_costs(estimate: Estimate) -> Iterator[RenderableType]:
    rows = [(cost.stage, time_in_words(cost.seconds), _size(cost.memory), _size(cost.held)) for cost in estimate.costs]
    rows.append(("all", time_in_words(estimate.seconds), _size(estimate.memory), _size(estimate.held)))
    header = ("stage", "time", "peak memory", "without mapped files")
    yield Columns(header, rows, numbers_from=1, last_is_total=True)
    yield ""
    rates = estimate.rates
    writing = f"a disk that writes {_size(rates.write)}/s" if rates.write else "a disk that could not be tried"
    workspace = f"; {_size(estimate.disk.workspace)} more while it runs" if estimate.disk.workspace else ""
    total, onnx = estimate.disk.safetensors + estimate.disk.onnx, estimate.disk.onnx
    hint = f" More than half of it is ONNX: {words}." if (words := smaller(total, onnx)) else ""
    yield Sentences(
        f"Disk: {_size(total)}{workspace}.{hint} "
        f"Estimated for {rates.macs / 1e9:,.1f} billion MACs/s, as this machine is just now, and {writing}. "
        "Memory counts pages of mapped files. Reading texts, fetching and publishing are not estimated."
    )


def _dtype(shapes: Shapes) -> str:
    return str(shapes.dtype).removeprefix("torch.")


def _words(scheme: Scheme) -> tuple[str, ...]:
    if scheme.prune == "weights":
        return f"{scheme.pattern} of weights", "", "", "", "", ""
    score = scheme.score if scheme.score_exponent == 1 else f"{scheme.score}^{scheme.score_exponent:g}"
    variance = "corrected" if scheme.variance_correction else "as it is"
    outputs = ["scale"] if scheme.output_scale else []
    outputs += [f"{scheme.output_bias} bias"] if scheme.output_bias != "none" else []
    outputs += [f"residual of rank {scheme.residual_rank}"] if scheme.residual_rank else []
    pattern = scheme.pattern if scheme.grouping == "neighbours" else f"{scheme.pattern} {scheme.grouping}"
    return pattern, score, scheme.shift, variance, scheme.phase, ", ".join(outputs)
