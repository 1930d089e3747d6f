"""From a recipe to a calibrated model: plan -> allocate -> calibrate -> learn, as far as that is not done yet."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nm_export.batches import read_tokens
from nm_export.calibration import calibrate
from nm_export.calibration.budget import choose_patterns
from nm_export.calibration.processes import Processes
from nm_export.calibration.text import TokenSequences, read_sequences
from nm_export.compute_dtype import ComputeType, choose_compute_type, earlier_choice, name_of, round_weights
from nm_export.digests import digest
from nm_export.errors import UserError
from nm_export.evaluation import perplexity, torch_logits
from nm_export.inputs import PROGRAM, Inputs
from nm_export.journal import Entry
from nm_export.json_files import read_json_object
from nm_export.learning import LearningReport, learn
from nm_export.modeling import NMSparseForCausalLM
from nm_export.onnx.base_graph import check_positions
from nm_export.parameters import load_parameters, save_parameters
from nm_export.plan import Plan, make_plan
from nm_export.progress import say
from nm_export.recipe import LearningText, Recipe
from nm_export.sources import OpenSource, load_model
from nm_export.stages import Stages
from nm_export.whole_file import write_whole

_ELEMENTS = 1 << 22  # of a weight that are looked at together


class Material:
    """What a recipe starts from, without a weight in memory: the model's files, its tokenizer, the texts.

    Attributes:
        source: the model's files.
        tokenizer: its tokenizer.
        text: sequences for calibration.
        held_out: sequences that calibration does not see.
        learning_text: sequences for learning, or None.
        texts: all of them by name.
        inputs: what each stage reads.
        compute: the type to compute in.
    """

    def __init__(
        self,
        recipe: Recipe,
        stages: Stages,
        *,
        with_onnx: bool = False,
        finished: Path | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Open and read.

        Args:
            recipe: what to do.
            stages: where to announce it, and where to find what an earlier run has chosen.
            with_onnx: whether an ONNX export belongs to the road.
            finished: a folder that may be what the recipe gives already.
            processes: those of the launch, which compute alike.
        """
        self.source = OpenSource(recipe.model)
        if with_onnx:
            check_positions(self.source.config)  # before hours of work
        self.tokenizer = self.source.tokenizer
        with stages.stage("text", "Reading text"):
            self.text = read_sequences(self.tokenizer, recipe.calibration)
            self.held_out = read_sequences(self.tokenizer, recipe.held_out)
            learns = recipe.learning.mode != "none"
            self.learning_text = read_sequences(self.tokenizer, learning_text(recipe)) if learns else None
        self.texts = {"calibration text": self.text, "held-out text": self.held_out}
        if self.learning_text is not None:
            self.texts["learning text"] = self.learning_text
        ids = {name: text.input_ids for name, text in self.texts.items()}
        # the name of a snapshot's folder is the commit, which the model's record names
        model = {"files": self.source.hashes(), "folder": self.source.folder.name}
        self.compute = self._choose_type(recipe, stages, finished, processes or Processes())
        model["computes in"] = name_of(self.compute.computed)
        self.inputs = Inputs(recipe, model, ids, with_onnx=with_onnx)

    def _choose_type(self, recipe: Recipe, stages: Stages, finished: Path | None, processes: Processes) -> ComputeType:
        """What the first process chooses: the type of the run that this one goes on with, or else the quicker one."""
        plan = stages.journal.entries.get("plan") if stages.journal else None
        records = [plan.result.get("base_model") if plan else None, _recorded_base(finished)]
        earlier = (earlier_choice(record, recipe.model.source) for record in records)
        source = self.source
        chosen = choose_compute_type(
            recipe.model.compute_dtype, source.stored_dtype, source.parameters, next(filter(None, earlier), None)
        )
        first = processes.gather(torch.tensor([float(chosen.is_wider)], dtype=torch.float64))[0]
        if bool(first) != chosen.is_wider:
            computed = torch.float32 if first else chosen.stored
            chosen = ComputeType(chosen.stored, computed, "as the first process does")
        if chosen.why and processes.rank == 0:
            say(f"Computing in {name_of(chosen.computed)}: {chosen.why}.")
        return chosen


class Prepared:
    """A calibrated model and what it was made from.

    Attributes:
        tokenizer: its tokenizer.
        provenance: of the base model, JSON values.
        plan: what is pruned.
        calibration_text: sequences that calibration has seen.
        held_out: sequences that it has not.
        dense_perplexity: of the base model on `held_out`; None when it was not to be measured.
        learning: what was trained, or None.
    """

    tokenizer: Any
    provenance: dict[str, Any]
    plan: Plan
    calibration_text: TokenSequences
    held_out: TokenSequences
    dense_perplexity: float | None = None
    learning: LearningReport | None = None

    def __init__(self, recipe: Recipe, material: Material, stages: Stages, processes: Processes) -> None:
        self._recipe, self._material, self._stages, self._processes = recipe, material, stages, processes
        self._file: Path | None = None
        self.tokenizer = material.tokenizer
        self.calibration_text, self.held_out = material.text, material.held_out

    @cached_property
    def model(self) -> Any:
        """The `NMSparseForCausalLM`; loaded when it is asked for and no stage needed it before."""
        model = NMSparseForCausalLM.from_dense(self._dense, self.plan.sparsity())
        if self._file is not None:
            load_parameters(model, self._file)
        return model

    @cached_property
    def _dense(self) -> Any:
        section = self._recipe.model
        with self._stages.stage("load", f"Loading {section.source}"):
            model, _, self.provenance = load_model(section, self._material.source, self._material.compute)
            _refuse_nan(model, self._recipe)
            _refuse_foreign_tokens(model, self._recipe, self._material.texts.values())
        return model

    def make(self, checkpoint_dir: Path | None) -> None:
        """Do what is not done yet."""
        recipe = self._recipe
        self._make_plan()
        if recipe.held_out.enabled and self._processes.rank == 0:
            self.dense_perplexity = self._measure_dense()  # before anything changes a weight
        if recipe.sparsity.budget is not None:
            self._allocate(recipe.sparsity.budget)
        self._calibrate()
        if self._material.learning_text is not None:
            self._learn(self._material.learning_text, checkpoint_dir)

    def _make_plan(self) -> None:
        read = self._read("plan")
        if entry := self._take("plan", read):
            self.plan, self.provenance = Plan.from_json(entry.result["linears"]), entry.result["base_model"]
            return
        self.plan = make_plan(self._dense, self._recipe)
        self._stages.keep("plan", read, result={"linears": self.plan.to_json(), "base_model": self.provenance})

    def _measure_dense(self) -> float:
        read = self._read("evaluate_dense")
        if entry := self._stages.take("evaluate_dense", read):
            return float(entry.result)
        model = self._dense
        with self._stages.stage("evaluate_dense", "Measuring the dense model's perplexity"):
            result = perplexity(torch_logits(model), self.held_out.input_ids)
        self._stages.keep("evaluate_dense", read, result=result)
        return result

    def _allocate(self, budget: float) -> None:
        """Choose which modules the recipe's budget prunes, and at which pattern."""
        read = self._read("allocate")
        if entry := self._take("allocate", read):
            chosen = entry.result
        else:
            dense = self._dense
            with self._stages.stage("allocate", f"Choosing modules for a budget of {budget:.0%}"):
                chosen = self._patterns(dense)
            self._keep("allocate", read, "patterns.json", lambda path: write_whole(path, json.dumps(chosen)), chosen)
        self.plan = self.plan.with_patterns(chosen)

    def _patterns(self, dense: Any) -> dict[str, str | None]:
        ids, settings = self.calibration_text.input_ids, self._recipe.calibration

        def fill(sparse: Any) -> None:
            calibrate(sparse, ids, settings.batch_size, block_by_block=settings.block_by_block)

        tokens = read_tokens(ids, "calibrate")
        return choose_patterns(dense, self.plan, self._recipe.sparsity, tokens, fill, self._processes)

    def _calibrate(self) -> None:
        read = self._read("calibrate")
        if entry := self._take("calibrate", read):
            self._restore(entry)
            return
        model = self.model
        with self._stages.stage("calibrate", f"Calibrating {len(self.plan.pruned)} linears"):
            settings = self._recipe.calibration
            ids, by_block = self.calibration_text.input_ids, settings.block_by_block
            calibrate(model, ids, settings.batch_size, self._processes, block_by_block=by_block)
            self._round(model)
        self._keep("calibrate", read, "calibrated.safetensors", lambda path: save_parameters(model, path))

    def _learn(self, text: TokenSequences, checkpoint_dir: Path | None) -> None:
        read = self._read("learn")
        if entry := self._take("learn", read):
            self.learning = LearningReport.from_dict(entry.result)
            self._restore(entry)
            return
        model, section = self.model, self._recipe.learning
        # without a journal, whoever chose the folder of the checkpoints knows the program
        key = digest(read if self._stages.journal else {k: v for k, v in read.items() if k != PROGRAM})
        with self._stages.stage("learn", f"Learning, {section.mode.replace('_', ' ')}"):
            self.learning = learn(
                model,
                text.input_ids,
                section,
                checkpoint_dir=checkpoint_dir,
                checkpoint_key=key,
                processes=self._processes,
            )
            self._round(model)
        report = self.learning.to_dict()
        self._keep("learn", read, "learned.safetensors", lambda path: save_parameters(model, path), report)

    def _round(self, model: Any) -> None:
        """Give rewritten weights the numbers that files will hold: everything after this is about those."""
        compute = self._material.compute
        if compute.is_wider:
            round_weights(model, compute.stored, model.config.sparsity["rewritten"])

    def _take(self, name: str, read: Mapping[str, str]) -> Entry | None:
        """Take a stage over if every process can."""
        entry = self._stages.take(name, read)
        found = self._processes.gather(torch.tensor([float(entry is not None)], dtype=torch.float64))
        return entry if bool(found.all()) else None

    def _read(self, name: str) -> dict[str, str]:
        journal = self._stages.journal
        return self._material.inputs.of(name, journal.entries if journal else {})

    def _keep(
        self, name: str, read: Mapping[str, str], file: str, write: Callable[[Path], None], result: Any = None
    ) -> None:
        journal = self._stages.journal
        if journal is not None and journal.writable:
            path = journal.folder / file
            write(path)
            self._stages.keep(name, read, [path], result)

    def _restore(self, entry: Entry) -> None:
        assert self._stages.journal is not None
        [name] = entry.wrote
        self._file = self._stages.journal.folder / name


def prepare(
    recipe: Recipe, stages: Stages, processes: Processes, checkpoint_dir: Path | None, material: Material | None = None
) -> Prepared:
    """Do what a recipe says up to the calibrated model; every process of a launch does it alike.

    Args:
        recipe: what to do.
        stages: where to announce what is going on, and where to find what was done before.
        processes: those of the launch.
        checkpoint_dir: where learning leaves what a later run continues from.
        material: what the recipe starts from, where it was read already.

    Raises:
        UserError: something that the user can correct.
    """
    prepared = Prepared(recipe, material or Material(recipe, stages, processes=processes), stages, processes)
    prepared.make(checkpoint_dir)
    return prepared


def _recorded_base(folder: Path | None) -> Any:
    """What a finished folder says about its base model; None if there is none."""
    if folder is None:
        return None
    try:
        record = read_json_object(folder / "nm_export.json")
    except (OSError, UserError):
        return None
    return record.get("base_model")


def learning_text(recipe: Recipe) -> LearningText:
    """The calibration text in the numbers that learning asks for."""
    learning = recipe.learning
    numbers = {
        "num_samples": learning.num_samples + learning.held_out_samples,
        "sequence_length": learning.sequence_length,
        "seed": learning.seed,
    }
    return LearningText(**{**dict(recipe.calibration), **numbers})


def _refuse_foreign_tokens(model: Any, recipe: Recipe, texts: Iterable[TokenSequences]) -> None:
    known = model.get_input_embeddings().weight.shape[0]
    largest = max(int(text.input_ids.max()) for text in texts)
    if largest >= known:
        raise UserError(
            f"the tokenizer of {recipe.model.source} makes the token {largest:,}, and the "
            f"model knows {known:,} tokens; give the tokenizer that belongs to the model."
        )


def _refuse_nan(model: torch.nn.Module, recipe: Recipe) -> None:
    for name, parameter in model.named_parameters():
        if not all(part.isfinite().all() for part in parameter.detach().reshape(-1).split(_ELEMENTS)):
            overflows = recipe.model.dtype == "float16"
            hint = "set model.dtype to bfloat16 or float32" if overflows else "the checkpoint is damaged"
            raise UserError(f"{recipe.model.source} holds NaN or infinite values in {name}; {hint}.")
