"""What the stages of the road read: sections of the recipe, the model, texts, what earlier stages wrote; by content."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from nm_export.digests import digest, program_digest, tensor_digest
from nm_export.journal import Entry
from nm_export.recipe import Recipe

PROGRAM = "the program"
"""This package and the libraries whose versions count."""
_READ = {
    "plan": ("model", "sparsity"),
    "evaluate_dense": ("model", "held-out text"),
    "allocate": ("model", "sparsity", "calibration", "calibration text"),
    "calibrate": ("model", "sparsity", "calibration", "calibration text"),
    "learn": ("model", "sparsity", "learning", "learning text"),
    "write": ("model", "sparsity", "publish"),
    "onnx": ("model", "sparsity", "onnx"),
    "verify": ("model", "verify", "held-out text"),
    "evaluate": ("model", "held-out text"),
    "layers": ("model", "held-out text"),
    "benchmark": ("model", "onnx", "benchmark"),
    "record": ("recipe", "calibration text", "held-out text"),
}
_KEYS = {"calibration": ("batch_size", "block_by_block"), "publish": ("max_shard_size", "weights")}
"""The keys of a section that matter here; those that choose a text are known by the text."""
_AFTER = {
    "calibrate": ("allocate",),
    "learn": ("calibrate",),
    "write": ("calibrate", "learn"),
    "onnx": ("calibrate", "learn"),
    "verify": ("calibrate", "learn", "write", "onnx"),
    "evaluate": ("calibrate", "learn"),
    "layers": ("calibrate", "learn"),
    "benchmark": ("calibrate", "learn", "onnx"),
}
"""Whose files a stage reads."""
_PROGRAMS = {"benchmark": "benchmark/"}
"""Files of the package that count for one stage only."""


class Inputs:
    """What each stage of a recipe reads.

    Args:
        recipe: the recipe.
        model: which model it is, by the hashes of its files. JSON values.
        texts: token ids, int64 `[samples, length]`, by "calibration text", "held-out text" and "learning text".
        with_onnx: whether an ONNX export belongs to the road.

    Attributes:
        stages: names of the stages of this road, in order.
    """

    def __init__(
        self, recipe: Recipe, model: Mapping[str, Any], texts: Mapping[str, Tensor], *, with_onnx: bool = False
    ) -> None:
        self.stages = tuple(stages_of(recipe, with_onnx=with_onnx))
        self._recipe = recipe
        self._known = {
            "recipe": digest(recipe.to_dict()),
            "model": digest([recipe.model.model_dump(mode="json"), dict(model)]),
            **{name: tensor_digest(ids) for name, ids in texts.items()},
        }

    def of(self, stage: str, entries: Mapping[str, Entry]) -> dict[str, str]:
        """Return SHA-256 of all that a stage reads, by a few words for it; `entries` are the stages before it."""
        earlier = {
            f"what {name} wrote": digest(entries[name].wrote)
            for name in _AFTER.get(stage, ())
            if name in self.stages and name in entries
        }
        program = program_digest(_PROGRAMS[stage]) if stage in _PROGRAMS else program_digest()
        return {**{name: self._hash(name) for name in _READ[stage]}, **earlier, PROGRAM: program}

    def _hash(self, name: str) -> str:
        if name in self._known:
            return self._known[name]
        section = getattr(self._recipe, name).model_dump(mode="json")
        return digest({key: section[key] for key in _KEYS.get(name, section)})


def stages_of(recipe: Recipe, *, with_onnx: bool) -> Iterator[str]:
    """Names of the stages of a recipe's road, in order."""
    yield "plan"
    if recipe.held_out.enabled:
        yield "evaluate_dense"
    if recipe.sparsity.budget is not None:
        yield "allocate"
    yield "calibrate"
    if recipe.learning.mode != "none":
        yield "learn"
    yield "write"
    if with_onnx:
        yield "onnx"
    if recipe.verify.enabled:
        yield "verify"
    if recipe.held_out.enabled:
        yield "evaluate"
        yield "layers"
    if with_onnx and recipe.benchmark.enabled:
        yield "benchmark"
    yield "record"
