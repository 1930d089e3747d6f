"""The recipe: all sections together, and what they say about one module."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import ValidationInfo, field_validator, model_validator

from nm_export.recipe.sections import (
    BenchmarkSection,
    CalibrationSection,
    EvaluationSection,
    LearningSection,
    ModelSection,
    OnnxSection,
    Override,
    PublishSection,
    Scheme,
    Section,
    SparsitySection,
    VerifySection,
    is_a_place,
)

_INHERITED_TEXT_FIELDS = ("dataset", "name", "text_column", "revision")


class Recipe(Section):
    """Everything that decides what an export produces.

    Only the model is required: `Recipe(model={"source": "path/to/model"})`. Invalid values raise pydantic's
    ValidationError; `load_recipe` turns those into one sentence.
    """

    model: ModelSection
    """Which model is made sparse."""
    sparsity: SparsitySection = SparsitySection()
    """Which linear layers are pruned, and how."""
    calibration: CalibrationSection = CalibrationSection()
    """The text that calibration looks at."""
    learning: LearningSection = LearningSection()
    """Sparsity parameters that are trained."""
    evaluation: EvaluationSection = EvaluationSection()
    """Held-out text on which perplexity is measured."""
    onnx: OnnxSection = OnnxSection()
    """The ONNX export."""
    verify: VerifySection = VerifySection()
    """The proof that every form of the model agrees."""
    benchmark: BenchmarkSection = BenchmarkSection()
    """Speed beside the dense model."""
    publish: PublishSection = PublishSection()
    """The repository on the Hugging Face Hub."""
    output_dir: str | None = None
    """Folder to write, inside of the working directory; `--output-dir` names any other. Left out:
    `output/<model>-<N>of<M>`."""

    @field_validator("output_dir")
    @classmethod
    def _stays_in_the_working_directory(cls, value: str | None) -> str | None:
        # whoever wrote the recipe does not choose where the one who runs it is written to
        if value is None or not (is_a_place(value) or ".." in re.split(r"[/\\]", value)):
            return value
        here, there = Path.cwd(), Path(os.path.normpath(Path(value).expanduser()))
        if there.is_absolute() and there != here and there.is_relative_to(here):
            return there.relative_to(here).as_posix()  # holds wherever the recipe is read again
        raise ValueError(
            f"{value!r} lies outside of the working directory, and a recipe may come from anyone; if you want it "
            "written there, say so with --output-dir"
        )

    @model_validator(mode="after")
    def _held_out_text_is_held_out(self) -> Self:
        seen, held_out = self.calibration, self.held_out
        same_text = (seen.dataset, seen.name, seen.revision) == (held_out.dataset, held_out.name, held_out.revision)
        if held_out.enabled and same_text and (seen.split == held_out.split or "all" in (seen.split, held_out.split)):
            raise ValueError(
                f"calibration and evaluation read the same text ({seen.dataset}, splits {seen.split!r} and "
                f"{held_out.split!r}); give evaluation.split or evaluation.dataset a value of its own"
            )
        return self

    @model_validator(mode="after")
    def _scores_can_be_computed(self, info: ValidationInfo) -> Self:
        if not _is_run(info):
            return self
        schemes: tuple[SparsitySection | Override, ...] = (self.sparsity, *self.sparsity.overrides)
        for scheme in schemes:
            if scheme.score is not None and scheme.score.startswith("custom:"):
                raise ValueError(
                    f"sparsity has the score {scheme.score}, which no recipe can compute; make such a model in Python, "
                    "with sparsify and calibrate(scores=...)"
                )
        return self

    @model_validator(mode="after")
    def _what_is_learned_is_trained(self, info: ValidationInfo) -> Self:
        if not _is_run(info):
            return self
        schemes: tuple[SparsitySection | Override, ...] = (self.sparsity, *self.sparsity.overrides)
        wanted = {
            key
            for scheme in schemes
            for key, asked in (
                ("shift", scheme.shift == "learned"),
                ("scale", scheme.output_scale),
                ("bias", scheme.output_bias == "learned"),
            )
            if asked
        }
        trained = set(self.learning.parameters) if self.learning.mode != "none" else set()
        untrained = sorted(wanted - trained)
        if untrained:
            what = " and ".join(untrained)
            raise ValueError(
                f"sparsity has a learned {what} that nothing trains; set learning.mode to blockwise or end_to_end, "
                f"with {what} among learning.parameters"
            )
        return self

    @model_validator(mode="after")
    def _there_is_something_to_train(self) -> Self:
        if self.learning.mode == "none" or "weight" in self.learning.parameters:
            return self
        schemes: tuple[SparsitySection | Override, ...] = (self.sparsity, *self.sparsity.overrides)
        trainable = {
            "shift": any(scheme.shift in ("static_channel", "learned") for scheme in schemes),
            "scale": any(scheme.output_scale for scheme in schemes),
            "bias": any(scheme.output_bias in ("calibrated", "learned") for scheme in schemes),
            "residual": any(scheme.residual_rank for scheme in schemes),
        }
        if not any(trainable[parameter] for parameter in self.learning.parameters):
            keys = {
                "shift": "shift: learned",
                "scale": "output_scale: true",
                "bias": "output_bias: learned",
                "residual": "residual_rank",
            }
            wanted = " or ".join(keys[parameter] for parameter in self.learning.parameters)
            raise ValueError(
                f"learning.mode is {self.learning.mode}, but nothing can be trained: no module has what "
                f"learning.parameters names ({', '.join(self.learning.parameters)}); give sparsity {wanted}, or add "
                "weight to learning.parameters"
            )
        return self

    @property
    def held_out(self) -> EvaluationSection:
        """The evaluation section; where it names no dataset, dataset, subset, column and revision are calibration's."""
        if self.evaluation.dataset is not None:
            return self.evaluation
        inherited = {field: getattr(self.calibration, field) for field in _INHERITED_TEXT_FIELDS}
        explicit = {field: getattr(self.evaluation, field) for field in self.evaluation.model_fields_set - {"dataset"}}
        return self.evaluation.model_copy(update=inherited | explicit)

    def for_module(self, name: str) -> Scheme | None:
        """Scheme of the linear layer called `name`, or None; see `SparsitySection.for_module`."""
        return self.sparsity.for_module(name)

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """Wildcards that match none of `names`; see `SparsitySection.unmatched`."""
        return self.sparsity.unmatched(names)

    @property
    def name(self) -> str:
        """`<model>-<N>of<M>`: the default name of the output folder and of the repository."""
        stem = self.model.source.removeprefix("sample:").rstrip("/\\").removesuffix(".gguf")
        stem = re.sub(r"[^\w.-]+", "-", re.split(r"[/\\]", stem)[-1]).strip("-.") or "model"
        return f"{stem}-{self.sparsity.pattern.replace(':', 'of').replace('%', 'pct')}"

    def folder(self, output_dir: str | Path | None = None) -> Path:
        """Folder to write: `output_dir` if given, else the recipe's own, else `output/<name>`."""
        return Path(output_dir or self.output_dir or Path("output") / self.name).expanduser()

    def places(self) -> list[str]:
        """Where files lie on this machine, as `key: path`: absolute paths, which a published recipe would show."""
        return [
            f"{section}.{key}: {value}"
            for section, values in self.to_dict().items()
            if isinstance(values, dict)
            for key, value in values.items()
            if isinstance(value, str) and is_a_place(value)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe: every key that has a value, defaults included. Plain Python values only."""
        return self.model_copy(update={"evaluation": self.held_out}).model_dump(mode="json", exclude_none=True)

    def to_yaml(self, *, changed_first: bool = False) -> str:
        """The resolved recipe as YAML; reading it back and writing it again gives the same text.

        Args:
            changed_first: whether sections, and keys in them, come first that differ from the defaults.
        """
        values = self.to_dict()
        if changed_first:
            defaults = type(self)(model=ModelSection(source=self.model.source)).to_dict()
            del defaults["model"]["source"]
            values = _changed_first(values, defaults)
        return yaml_text(values)

    @classmethod
    def from_dict(cls, sections: Mapping[str, Any]) -> Self:
        """Validate nested plain values, such as `to_dict` gives. Raises pydantic's ValidationError."""
        return cls.model_validate(dict(sections))


class _Dumper(yaml.SafeDumper):
    pass


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Unquoted or in single quotes, PyYAML would write line ends of Unicode as they are, and read them as spaces.
    style = '"' if any(end in text for end in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def yaml_text(values: Mapping[str, Any]) -> str:
    """Plain values as YAML that reads back as they are."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _changed_first(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The same values in another order: those that differ from `defaults` first."""
    changed = {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}
    ordered = {**changed, **values}
    return {
        key: _changed_first(value, defaults[key]) if isinstance(value, dict) and key in defaults else value
        for key, value in ordered.items()
    }


def _is_run(info: ValidationInfo) -> bool:
    """Whether the recipe is to be run; one that describes a model made in Python is not."""
    return (info.context or {}).get("runs", True)
