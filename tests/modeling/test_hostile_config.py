"""NMSparseConfig from files that anybody may have made: read, or refused in one sentence."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from nm_export.modeling import NMSparseConfig
from tests.tiny_models import sparse_model

BASE = LlamaConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=64)
SCHEME: dict[str, Any] = {"pattern": "8:16", "modules": ["model.layers.0.mlp.up_proj"]}
VALID: dict[str, Any] = {"version": 1, "schemes": [SCHEME], "input_groups": [], "rewritten": []}
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["8:16", "50%", "none"])
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["pattern", "modules", "prune", "score", "score_exponent", "shift", "phase", "residual_rank", "x"]
)


def refusal(sparsity: Any) -> str:
    """The sentence, or nothing where the dict is accepted."""
    try:
        NMSparseConfig(base_config=BASE, sparsity=sparsity)
    except ValueError as error:
        sentence = str(error)
    else:
        return ""
    assert sentence.startswith("config.json: sparsity")
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"pattern": "1:99999999999"}, "pattern"),
        ({"pattern": "nan%"}, "pattern"),
        ({"pattern": 8}, "pattern"),
        ({"modules": "model.layers.0.mlp.up_proj"}, "modules"),
        ({"modules": [3]}, "modules"),
        ({"score": "exec"}, "score"),
        ({"score": ["magnitude"]}, "score"),
        ({"phase": "never"}, "phase"),
        ({"residual_rank": 10**12}, "residual_rank"),
        ({"residual_rank": -1}, "residual_rank"),
        ({"residual_rank": True}, "residual_rank"),
        ({"score_exponent": float("nan")}, "score_exponent"),
        ({"variance_correction": "no"}, "variance_correction"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_schemes_that_no_export_wrote(change: dict[str, Any], part: str) -> None:
    assert part in refusal({**VALID, "schemes": [{**SCHEME, **change}]})


@pytest.mark.parametrize(
    "sparsity", [[1], "8:16", 5, {}, {"version": 1}, {"version": 2}, {**VALID, "schemes": {"a": 1}}]
)
def test_sparsities_that_no_export_wrote(sparsity: Any) -> None:
    assert refusal(sparsity) or not sparsity, "an empty one means that nothing is pruned"


def test_a_sparse_model_inside_a_sparse_model() -> None:
    with pytest.raises(ValueError, match="itself"):
        NMSparseConfig(base_config={"model_type": "nm_sparse"}, sparsity=copy.deepcopy(VALID))
    with pytest.raises(ValueError, match="model_type"):
        NMSparseConfig(base_config={"model_type": ["llama"]}, sparsity=copy.deepcopy(VALID))


@given(TREES)
@settings(max_examples=200, deadline=None)
def test_any_value_is_a_sparsity_or_a_sentence(value: Any) -> None:
    refusal(value)


@given(st.dictionaries(KEYS, TREES, max_size=4), st.dictionaries(st.sampled_from(list(VALID)), TREES, max_size=2))
@settings(max_examples=300, deadline=None)
def test_any_mutation_is_a_sparsity_or_a_sentence(scheme: dict[str, Any], outer: dict[str, Any]) -> None:
    refusal({**VALID, "schemes": [{**SCHEME, **scheme}], **outer})


def test_configurations_come_back_as_they_were() -> None:
    config = sparse_model(pattern="8:16", score="weight_norm", shift="dynamic_mean", variance_correction=True).config
    again = NMSparseConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.sparsity == config.sparsity
    assert again.to_dict() == config.to_dict()
