"""The road: load -> plan -> calibrate -> write -> export -> verify -> measure -> publish."""

import hashlib
import json
import logging
import platform
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nm_export.arguments import named
from nm_export.benchmark import benchmark_model
from nm_export.calibration.launch import launched_processes
from nm_export.calibration.processes import Processes
from nm_export.calibration.text import TokenSequences, read_sequences
from nm_export.card import write_card
from nm_export.card.own_text import read_own_text
from nm_export.digests import digest
from nm_export.errors import NMExportError, UserError
from nm_export.estimates.costs import costs
from nm_export.estimates.rates import measure_rates
from nm_export.estimates.shapes import find_shapes
from nm_export.evaluation import perplexity, score_layers, torch_logits
from nm_export.exported import find_exported
from nm_export.finished import is_finished, made_by
from nm_export.inputs import stages_of
from nm_export.interruption import saying
from nm_export.preparation import Material, Prepared, prepare
from nm_export.progress import be_silent, doing, say
from nm_export.publishing.base_on_hub import check_place
from nm_export.publishing.base_weights import BaseWeights, find_base_weights, refer
from nm_export.publishing.folder import check_target
from nm_export.publishing.hub import Publication, check_publishable, command, find_destination, push
from nm_export.publishing.repository import Destination
from nm_export.publishing.save import write_model
from nm_export.publishing.saved import record_verification
from nm_export.publishing.settings import check_publishing, publish_settings
from nm_export.publishing.workspace import Workspace, working_on
from nm_export.quiet import quiet_transformers
from nm_export.recipe import Recipe, load_recipe
from nm_export.recipe.reading import recipe_of_folder
from nm_export.stages import Stages, peak_memory_bytes
from nm_export.summary import FolderVerification, Summary
from nm_export.verification import VerificationReport, verify
from nm_export.versions import RECORDED, installed_versions
from nm_export.whole_file import write_whole

logger = logging.getLogger(__name__)

VERIFY_WINDOW = 64
"""Tokens in a window of held-out text on which forms are compared end to end."""

WORTH_ESTIMATING = 300_000_000
"""Bytes of weights from which on a run says how long its stages take; measuring the machine takes 64 MB."""

LAYER_WINDOWS, LAYER_WINDOW = 2, 512
"""Windows of held-out text, and tokens in each, on which single layers are measured."""


def run(
    recipe: Recipe | str | Path,
    *,
    output_dir: str | Path | None = None,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    skip_onnx: bool = False,
    overwrite: bool = False,
    verbose: bool = False,
) -> Summary | None:
    """Do everything a recipe says and return what was done; None in all but the first process of a launch.

    The output folder appears when everything in it is verified, and not before; an earlier one is replaced in one step.
    What learning has reached stays beside it until then, for the next run of the same recipe.

    Args:
        recipe: what to do, or the path of the recipe's file.
        output_dir: folder to write instead of the recipe's.
        push_to_hub: whether to publish the verified folder.
        repo_id: repository to publish to instead of the recipe's.
        revision: branch of it instead of the recipe's.
        private: whether a new repository is private; the recipe may say so too, as it may of the others.
        create_pr: whether to leave a pull request there.
        skip_onnx: whether to leave out the ONNX export.
        overwrite: whether an earlier export may be replaced, and a repository that holds something else.
        verbose: whether libraries may log.

    Raises:
        UserError: something that the user can correct.
        NMExportError: verification or the upload failed.
    """
    if isinstance(recipe, (str, Path)):
        recipe = load_recipe(recipe)
    if not isinstance(recipe, Recipe):
        raise UserError(f"run takes a Recipe or the path of one, not {named(recipe)}.")
    check_publishing(recipe, push_to_hub, repo_id=repo_id, revision=revision, private=private, create_pr=create_pr)
    target = recipe.folder(output_dir).resolve()
    with_onnx = recipe.onnx.enabled and not skip_onnx
    # a finished folder is not in the way: it may be what is asked for
    check_target(target, overwrite=overwrite or made_by(target, recipe))
    read_own_text(recipe.publish.card_text)  # what is wrong with it is said before any work
    destination = None
    if push_to_hub:
        settings = publish_settings(
            recipe, repo_id=repo_id, revision=revision, private=private, create_pr=create_pr, overwrite=overwrite
        )
        destination = find_destination(settings)
        _say_what_it_shows(recipe, destination)
    base = None
    if recipe.publish.weights == "reference":
        base = find_base_weights(recipe.model)
        if destination:
            check_place(base.place, destination.repo_id)
    processes = launched_processes()
    with quiet_transformers(not verbose):
        if processes.rank:  # calibrates with the others; the first process writes
            be_silent()
            workspace = Workspace(target, writable=False)
            stages = Stages(announce=False, journal=workspace.journal)
            material = Material(recipe, stages, with_onnx=with_onnx, finished=target, processes=processes)
            if overwrite or not is_finished(target, material.inputs):
                prepare(recipe, stages, processes, workspace.learning, material)
            return None
        with working_on(target) as workspace, saying(workspace.describe):
            stages = Stages(journal=workspace.journal)
            stages.follow(_announced(recipe, with_onnx, push_to_hub))
            material = Material(recipe, stages, with_onnx=with_onnx, finished=target, processes=processes)
            if not overwrite and is_finished(target, material.inputs):
                workspace.remove()
                summary = Summary.of_folder(target)
            else:
                check_target(target, overwrite=overwrite)
                stages.expect(lambda: _expected(recipe, material, with_onnx))
                name = destination.repo_id if destination else target.name
                summary = _make(recipe, workspace, stages, material, processes, base, repository=name)
    if destination:
        continued = f"interrupted; {target} is finished, continue with `{command(target, destination)}`"
        with stages.stage("publish", f"Publishing to {destination.repo_id}"), saying(lambda: continued):
            summary = replace(summary, published=push(target, destination))
    return summary


def _make(
    recipe: Recipe,
    workspace: Workspace,
    stages: Stages,
    material: Material,
    processes: Processes,
    base: BaseWeights | None,
    *,
    repository: str,
) -> Summary:
    """Do what is not done yet, and give the folder its name."""
    folder, journal, inputs = workspace.model, workspace.journal, material.inputs
    with_onnx = "onnx" in inputs.stages
    stored = material.compute.stored
    journal.keep_only(inputs.stages)
    prepared = prepare(recipe, stages, processes, workspace.learning, material)

    def once(name: str, description: str, work: Callable[[Any], tuple[Iterable[Path], Any]]) -> Any:
        """Return the result of a stage: what an earlier run has left, or else of `work` on the model."""
        read = inputs.of(name, journal.entries)
        if entry := stages.take(name, read):
            return entry.result
        model = prepared.model  # before the clock starts
        with stages.stage(name, description):
            files, result = work(model)
        stages.keep(name, read, files, result)
        return result

    def write(model: Any) -> tuple[Iterable[Path], None]:
        folder.mkdir(exist_ok=True)
        before = set(_files(folder))
        write_model(model, prepared.tokenizer, folder, recipe.publish.max_shard_size, stored)
        if base:
            refer(folder, folder, base, recipe.publish.max_shard_size)
        return set(_files(folder)) - before, None

    def onnx(model: Any) -> tuple[Iterable[Path], dict[str, Any] | None]:
        quantization = _export_onnx(model, folder, recipe, inputs.of("onnx", journal.entries))
        return _files(folder / "onnx"), quantization

    once("write", "Writing the model", write)
    quantization = once("onnx", "Exporting to ONNX", onnx) if with_onnx else None
    report = quality = layers = speed = None
    if recipe.verify.enabled:
        ids = prepared.held_out.input_ids
        try:
            found = once(
                "verify",
                "Verifying",
                lambda model: ((), _verify(folder, model, ids, recipe, with_onnx, stored).to_dict()),
            )
        except NMExportError:
            for stage in ("onnx", "write"):  # what is wrong is not taken as it is by the next run
                journal.forget(stage)
            raise
        report = VerificationReport.from_dict(found)
    if prepared.dense_perplexity is not None:
        ids = prepared.held_out.input_ids
        sparse = once(
            "evaluate",
            "Measuring the sparse model's perplexity",
            lambda model: ((), perplexity(torch_logits(model), ids)),
        )
        quality = _quality(prepared.held_out, sparse, prepared.dense_perplexity)
        layers = once(
            "layers", "Measuring what each layer keeps", lambda model: ((), _layers(model, prepared.held_out))
        )
    if "benchmark" in inputs.stages:
        speed = once(
            "benchmark",
            "Measuring speed beside the dense model",
            lambda model: ((), _speed(model, folder, recipe, workspace.target.name)),
        )
    numbers = _numbers(stages, quality, report, with_onnx)
    numbers["genai"] = (folder / "onnx" / "genai_config.json").is_file()
    numbers["quantization"] = quantization
    numbers["learning"] = prepared.learning.to_dict() if prepared.learning else None
    numbers["layers"] = layers
    numbers["speed"] = [speed] if speed else []
    record = _record(recipe, prepared)
    write_whole(folder / "recipe.yaml", recipe.to_yaml(changed_first=True))
    write_whole(folder / "nm_export.json", _json(record))
    stages.keep("record", inputs.of("record", journal.entries), [folder / "recipe.yaml", folder / "nm_export.json"])
    write_whole(folder / "measurements.json", _json(numbers))
    own_text = read_own_text(recipe.publish.card_text)
    write_card(folder, name=workspace.target.name, repository=repository, own_text=own_text, earlier=workspace.target)
    workspace.finish(inputs.stages)
    return Summary(
        workspace.target,
        prepared.plan,
        quality,
        report,
        stages.seconds,
        numbers["peak_memory_bytes"],
        learning=prepared.learning,
    )


def _announced(recipe: Recipe, with_onnx: bool, push_to_hub: bool) -> list[str]:
    """The stages that are announced, in order."""
    silent = ("plan", "record")
    stages = [stage for stage in stages_of(recipe, with_onnx=with_onnx) if stage not in silent]
    return ["text", "load", *stages, *(["publish"] if push_to_hub else [])]


def _expected(recipe: Recipe, material: Material, with_onnx: bool) -> dict[str, float]:
    """Seconds by stage, estimated where the run is longer than estimating it."""
    if sum(path.stat().st_size for path in material.source.weights) < WORTH_ESTIMATING:
        return {}
    try:
        shapes = find_shapes(recipe)
        rates = measure_rates(shapes.dtype, Path(tempfile.gettempdir()))
    except Exception as error:  # of any architecture: an estimate fails no run
        logger.debug("The time is not estimated: %r", error)
        return {}
    return {cost.stage: cost.seconds for cost in costs(recipe, shapes, rates, with_onnx=with_onnx)}


def publish_folder(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    overwrite: bool = False,
) -> Publication:
    """Publish a folder that `run` wrote and verified, or continue publishing it; nothing is computed again.

    Args:
        folder: the folder.
        repo_id: repository to publish to instead of the one in the folder's recipe.
        revision: branch of it instead of the recipe's.
        private: whether a new repository is private; the recipe may say so too, as it may of the others.
        create_pr: whether to leave a pull request there.
        overwrite: whether a repository that holds something else may be replaced.

    Raises:
        UserError: the folder was not verified or is not whole, or the Hub does not let this account publish there.
        NMExportError: the upload failed; it can be continued.
    """
    folder = Path(folder).resolve()
    check_publishable(folder)
    recipe = recipe_of_folder(folder)
    settings = publish_settings(
        recipe, repo_id=repo_id, revision=revision, private=private, create_pr=create_pr, overwrite=overwrite
    )
    destination = find_destination(settings)
    _say_what_it_shows(recipe, destination)
    continued = f"interrupted; continue with `{command(folder, destination)}`"
    with saying(lambda: continued), doing(f"Publishing to {destination.repo_id}"):
        return push(folder, destination)


def _say_what_it_shows(recipe: Recipe, destination: Destination) -> None:
    if places := recipe.places():
        say(f"{destination.repo_id} will show where files lie here: {', '.join(places)}; relative paths would not.")


def verify_folder(folder: str | Path) -> FolderVerification:
    """Check again that every form of an exported model agrees.

    Args:
        folder: a folder that `run` wrote, or the name of a published repository.

    Raises:
        UserError: it is no exported model, or a file in it is missing or damaged.
        NMExportError: the forms disagree; names the first module or measure out of tolerance.
    """
    from nm_export.loading import load_exported

    with quiet_transformers():
        with doing(f"Loading {folder}"):
            found = find_exported(folder)
            model, tokenizer, recipe = load_exported(found, quick=True)
            sequences = read_sequences(tokenizer, recipe.held_out).input_ids
        with doing("Verifying"):
            with_onnx = (found / "onnx" / "model.onnx").is_file()
            report = _verify(found, model, sequences, recipe, with_onnx)
    record_verification(found, report)
    return FolderVerification(str(folder), report)


def _export_onnx(model: Any, folder: Path, recipe: Recipe, read: dict[str, str]) -> dict[str, Any] | None:
    """Export, and return what quantization did to the weights, if anything did."""
    from nm_export.onnx import export_onnx

    result = export_onnx(
        model,
        folder,
        tokenizer_dir=folder,
        opset=recipe.onnx.opset,
        precision=recipe.onnx.precision,
        block_size=recipe.onnx.block_size,
        symmetric=recipe.onnx.symmetric,
        kernel=recipe.onnx.kernel,
        exporter=recipe.onnx.exporter,
        metadata={"made_from_sha256": digest(read)},
    )
    return result.quantization.to_dict() if result.quantization else None


def _verify(
    folder: Path,
    model: Any,
    sequences: torch.Tensor,
    recipe: Recipe,
    with_onnx: bool,
    stored: torch.dtype | None = None,
) -> VerificationReport:
    settings = recipe.verify
    length = min(VERIFY_WINDOW, sequences.shape[1])
    windows = sequences[:, : sequences.shape[1] // length * length].reshape(-1, length)
    return verify(
        folder,
        model,
        windows[: max(1, settings.num_tokens // length)],
        output_tolerance=settings.output_tolerance,
        divergence_factor=settings.divergence_factor,
        onnx=with_onnx,
        stored=stored,
    )


def _quality(held_out: TokenSequences, sparse: float, dense: float) -> dict[str, Any]:
    text = _described(held_out, held_out.input_ids)
    return {"text": text, "sparse": sparse, "dense": dense, "ratio": sparse / dense}


def _layers(model: Any, held_out: TokenSequences) -> dict[str, Any]:
    windows = held_out.input_ids[:LAYER_WINDOWS, :LAYER_WINDOW]
    return {"text": _described(held_out, windows), **score_layers(model, windows).to_dict()}


def _described(text: TokenSequences, windows: torch.Tensor) -> str:
    source = text.provenance
    # of a file only its name: the folders before it are the author's own
    name = Path(source["dataset"]).name if Path(source["dataset"]).exists() else source["dataset"]
    return f"{name} ({source['split']}), {windows.shape[0]} windows of {windows.shape[1]} tokens"


def _speed(model: Any, folder: Path, recipe: Recipe, title: str) -> dict[str, Any] | None:
    """Measure, or say why not: what is missing for it fails no run."""
    settings = recipe.benchmark
    try:
        measured = benchmark_model(
            folder,
            model=model,
            title=title,
            prompts=settings.prompts,
            new_tokens=settings.new_tokens,
            repeats=settings.repeats,
        )
    except UserError as error:
        logger.warning("Speed is not measured: %s", error)
        return None
    return measured.to_dict()


def _record(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What went in: everything that decides the bytes of the model, and nothing that changes from run to run."""
    plan = prepared.plan
    return {
        "format": 1,
        "base_model": prepared.provenance,
        "calibration_text": prepared.calibration_text.provenance,
        "held_out_text": prepared.held_out.provenance,
        "recipe_sha256": hashlib.sha256(recipe.to_yaml().encode()).hexdigest(),
        "linear_macs": plan.macs_record(),
        "versions": {"python": platform.python_version(), **installed_versions(RECORDED)},
    }


def _numbers(
    stages: Stages, quality: dict[str, Any] | None, report: VerificationReport | None, with_onnx: bool
) -> dict[str, Any]:
    return {
        "perplexity": quality,
        "verification": report.to_dict() if report else None,
        "onnx": with_onnx,
        "seconds": stages.seconds,
        "peak_memory_bytes": max(stages.peak_memory, peak_memory_bytes()),
        "threads": torch.get_num_threads(),
        "machine": platform.platform(),
    }


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
