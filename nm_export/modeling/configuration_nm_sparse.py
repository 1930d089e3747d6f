"""Configuration of a language model with N:M activation sparsity.

This file is published with every model; it needs torch and transformers only.
"""

import re
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

SPARSITY_VERSION = 1

SCHEME_DEFAULTS: dict[str, Any] = {
    "prune": "activations",
    "grouping": "neighbours",
    "score": "magnitude",
    "score_exponent": 1.0,
    "shift": "none",
    "variance_correction": False,
    "phase": "both",
    "output_scale": False,
    "output_bias": "none",
    "residual_rank": 0,
}

_WORDS = {
    "prune": ("activations", "weights"),
    "grouping": ("neighbours", "strided"),
    "score": ("magnitude", "weight_norm", "clact", "clact_noncausal", "amber", "smoothquant"),
    "shift": ("none", "dynamic_mean", "dynamic_median", "static_scalar", "static_channel", "learned"),
    "phase": ("both", "prefill", "decode"),
    "output_bias": ("none", "calibrated", "learned"),
    "variance_correction": (False, True),
    "output_scale": (False, True),
}
_CUSTOM_SCORE = re.compile(r"custom:[\w.-]{1,64}", re.ASCII)
_PATTERN = re.compile(r"\d{1,2}:\d{1,2}|\d{1,3}(\.\d{1,20})?%", re.ASCII)
_LARGEST_RANK = 4096

# Attributes that describe the wrapper; everything else that the base model's configuration knows is read from and
# written to the base model's configuration.
_OWN = frozenset(
    {"base_config", "sparsity", "base_weights", "auto_map", "architectures", "model_type", "transformers_version"}
)
# Private, but about the base model all the same: kept there only, so that switching the attention reaches its modules.
_BASES = frozenset({"_attn_implementation_internal", "_experts_implementation_internal"})


def _check_sparsity(sparsity: Any) -> None:
    """Raise ValueError for what no export wrote: the dict comes from a file that anybody may have made."""

    def expect(holds: bool, key: str, what: str) -> None:
        if not holds:
            raise ValueError(f"config.json: sparsity{key} is not {what}.")

    def are_names(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)

    expect(isinstance(sparsity, dict), "", "a mapping")
    if sparsity.get("version") != SPARSITY_VERSION:
        raise ValueError(
            f"config.json: sparsity.version is {repr(sparsity.get('version'))[:20]}; this code reads version "
            f"{SPARSITY_VERSION}. Load the model with the remote code that was published beside it."
        )
    expect(isinstance(sparsity.get("schemes"), (list, tuple)), ".schemes", "a list")
    expect(are_names(sparsity.get("rewritten", ())), ".rewritten", "a list of names")
    groups = sparsity.get("input_groups", ())
    expect(
        isinstance(groups, (list, tuple)) and all(map(are_names, groups)), ".input_groups", "a list of lists of names"
    )
    for number, scheme in enumerate(sparsity["schemes"]):
        at = f".schemes[{number}]"
        expect(isinstance(scheme, dict), at, "a mapping")
        unknown = [key for key in scheme if key not in SCHEME_DEFAULTS and key not in ("pattern", "modules")]
        expect(not unknown, f"{at}.{str(unknown[:1])[2:42]}", "a key that this code knows")
        expect(are_names(scheme.get("modules")), f"{at}.modules", "a list of names")
        pattern = scheme.get("pattern")
        expect(isinstance(pattern, str) and bool(_PATTERN.fullmatch(pattern)), f"{at}.pattern", "N:M or P%")
        for key, words in _WORDS.items():
            value = scheme.get(key, SCHEME_DEFAULTS[key])
            known = isinstance(value, type(words[0])) and value in words
            known = known or (key == "score" and isinstance(value, str) and bool(_CUSTOM_SCORE.fullmatch(value)))
            expect(known, f"{at}.{key}", f"one of {', '.join(map(str, words))}")
        rank = scheme.get("residual_rank", 0)
        expect(type(rank) is int and 0 <= rank <= _LARGEST_RANK, f"{at}.residual_rank", f"from 0 to {_LARGEST_RANK}")
        exponent = scheme.get("score_exponent", 1.0)
        expect(type(exponent) in (int, float) and 0 <= exponent <= 8, f"{at}.score_exponent", "from 0 to 8")


class NMSparseConfig(PreTrainedConfig):
    """Configuration of a base model some of whose linears prune their inputs.

    Args:
        base_config: configuration of the base model, whole; a dict with its `model_type` or a `PreTrainedConfig`.
        sparsity: what is pruned and how:

            * `version`: 1;
            * `schemes`: list of `pattern` ("8:16", or "50%" of all channels), `prune` (activations, weights),
              `grouping` (neighbours, strided), `score` (magnitude, weight_norm, clact, clact_noncausal, amber,
              smoothquant, or custom:NAME, a vector that its author computed), `score_exponent`, `shift` (none,
              dynamic_mean, dynamic_median, static_scalar, static_channel, learned), `variance_correction`, `phase`
              (both, prefill, decode), `output_scale`, `output_bias` (none, calibrated, learned), `residual_rank` and
              `modules`, the exact names of the linears that follow the scheme; what is left out is `SCHEME_DEFAULTS`;
            * `input_groups`: lists of module names that read the same input, score it alike and so share one selection;
            * `rewritten`: names of the base model's tensors that differ from the base model's.
        base_weights: where the weights are that the repository itself does not hold, see `reference_nm_sparse.py`;
            None when it holds them all.

    Unknown attributes are the base model's: `config.hidden_size` reads and `config.use_cache = False` sets them there.
    """

    model_type = "nm_sparse"
    sub_configs: ClassVar[dict[str, type]] = {"base_config": AutoConfig}

    def __init__(
        self,
        base_config: PreTrainedConfig | dict[str, Any] | None = None,
        sparsity: dict[str, Any] | None = None,
        base_weights: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(base_config, dict):
            fields = dict(base_config)
            if fields.get("model_type") == self.model_type:
                raise ValueError("config.json: base_config is itself a model with N:M sparsity.")
            if not isinstance(fields.get("model_type"), str):
                raise ValueError("config.json: base_config has no model_type, so the base model's class is unknown.")
            base_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        elif base_config is None:  # transformers builds a default instance to find what differs from it
            base_config = PreTrainedConfig()
        self.base_config = base_config
        self.sparsity = sparsity or {"version": SPARSITY_VERSION, "schemes": [], "input_groups": [], "rewritten": []}
        _check_sparsity(self.sparsity)
        self.sparsity["schemes"] = [SCHEME_DEFAULTS | scheme for scheme in self.sparsity["schemes"]]
        self.base_weights = base_weights
        kwargs.pop("auto_map", None)
        for field in ("dtype", "id2label", "label2id", "is_encoder_decoder", "problem_type"):
            kwargs.setdefault(field, getattr(base_config, field, None))
        for field in ("attn_implementation", "experts_implementation"):
            kwargs.setdefault(field, getattr(base_config, f"_{field}_internal", None))
        super().__init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "configuration_nm_sparse.NMSparseConfig",
            "AutoModel": "modeling_nm_sparse.NMSparseModel",
            "AutoModelForCausalLM": "modeling_nm_sparse.NMSparseForCausalLM",
        }

    def __getattr__(self, name: str) -> Any:
        # Only reached for what the wrapper itself lacks. Private names are never the base model's: deepcopy and pickle
        # probe for them before base_config exists.
        if name == "base_config" or (name.startswith("_") and name not in _BASES):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.base_config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        base = self.__dict__.get("base_config")
        if name in _BASES:
            setattr(self.base_config, name, value)
            return
        if base is None or name in _OWN or name.startswith("_"):
            super().__setattr__(name, value)
            return
        shared = hasattr(PreTrainedConfig, name)
        if shared:
            super().__setattr__(name, value)
        if hasattr(base, name):
            setattr(base, name, value)
        elif not shared:
            super().__setattr__(name, value)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the configuration that caches, heads and embeddings are built from: the base model's."""
        return self.base_config.get_text_config(decoder=decoder, encoder=encoder)

    def to_dict(self) -> dict[str, Any]:
        """Serialise to a dict that holds the base configuration whole and no path of the machine that wrote it."""
        output = super().to_dict()
        output["base_config"].pop("_name_or_path", None)
        output.pop("_name_or_path", None)
        if output.get("base_weights") is None:
            output.pop("base_weights", None)
        return output
