"""What a recipe says about one module, and the resolved recipe that is published."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nm_export.errors import UserError
from nm_export.recipe import Override, Recipe, Scheme, SparsitySection, parse_recipe
from nm_export.recipe.model import yaml_text
from nm_export.recipe.patterns import check_pattern

Q, K, DOWN = (f"model.layers.3.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))


def recipe(**sparsity: object) -> Recipe:
    return Recipe(model={"source": "some/model"}, sparsity=sparsity)


def test_targets_and_ignore() -> None:
    assert recipe().for_module(Q) == Scheme()
    assert recipe().for_module("lm_head") is None
    assert recipe(targets="*.q_proj").for_module(Q) == Scheme()
    assert recipe(targets="*.q_proj").for_module(K) is None
    assert recipe(ignore=["*.layers.3.*"]).for_module(Q) is None
    assert recipe(targets="q_proj").for_module(Q) is None, "a wildcard matches whole names"
    assert recipe(targets="*.Q_PROJ").for_module(Q) is None, "case matters on every system"


def test_a_scheme_knows_its_numbers() -> None:
    scheme = recipe(pattern="2:4", score="weight_norm", score_exponent=0.5, shift="static_channel").for_module(Q)
    assert scheme is not None
    assert (scheme.pattern, scheme.score, scheme.score_exponent) == ("2:4", "weight_norm", 0.5)
    assert scheme.model_dump() == {
        "pattern": "2:4",
        "prune": "activations",
        "score": "weight_norm",
        "score_exponent": 0.5,
        "shift": "static_channel",
        "variance_correction": False,
        "phase": "both",
        "output_scale": False,
        "output_bias": "none",
        "residual_rank": 0,
        "grouping": "neighbours",
    }


def test_overrides_win_in_order_field_by_field() -> None:
    resolved = recipe(
        pattern="8:16",
        overrides=[
            {"modules": "*_proj", "shift": "dynamic_mean", "phase": "prefill"},
            {"modules": ["*.k_proj", "*.down_proj"], "pattern": "2:4", "shift": "none"},
            {"modules": "*.down_proj", "dense": True},
        ],
    )
    assert resolved.for_module(Q) == Scheme(shift="dynamic_mean", phase="prefill")
    assert resolved.for_module(K) == Scheme(pattern="2:4", phase="prefill")
    assert resolved.for_module(DOWN) is None


def test_a_later_override_takes_dense_back() -> None:
    overrides = [{"modules": "*", "dense": True}, {"modules": "*.q_proj", "dense": False, "pattern": "4:8"}]
    assert recipe(overrides=overrides).for_module(Q) == Scheme(pattern="4:8")
    assert recipe(overrides=overrides).for_module(K) is None


def test_an_override_neither_adds_targets_nor_lifts_ignore() -> None:
    overrides = [{"modules": "*", "dense": False, "pattern": "4:8"}]
    assert recipe(targets="*.k_proj", overrides=overrides).for_module(Q) is None
    assert recipe(ignore="*.q_proj", overrides=overrides).for_module(Q) is None


def test_schemes_that_prune_alike_are_equal() -> None:
    plain, exponent = recipe(score_exponent=0.5).for_module(Q), recipe().for_module(Q)
    assert plain == exponent
    assert len({plain, exponent}) == 1


def test_wildcards_that_match_nothing_are_reported() -> None:
    names = [Q, K, DOWN, "lm_head"]
    assert recipe().unmatched([Q]) == []
    assert recipe(
        targets=["*.q_proj", "*.q_porj"], ignore="*.head", overrides=[{"modules": ["*", "*.5.*"], "dense": True}]
    ).unmatched(names) == [
        'sparsity.targets: "*.q_porj"',
        'sparsity.ignore: "*.head"',
        'sparsity.overrides[0].modules: "*.5.*"',
    ]


@settings(deadline=None)
@given(st.integers(-3, 70), st.integers(-3, 70))
def test_patterns(n: int, m: int) -> None:
    if 1 <= n <= m <= 64:
        assert check_pattern(f"{n}:{m}") == f"{n}:{m}"
    else:
        with pytest.raises(ValueError, match="pattern"):
            check_pattern(f"{n}:{m}")


@pytest.mark.parametrize(
    "pattern", ["", ":", "8", "8:", "8:16:32", "8/16", "٨:16", "8:16\n", "0x8:16", "8.0:16", "%", "50", "5e1%"]
)
def test_texts_that_are_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match="not a pattern"):
        check_pattern(pattern)


@pytest.mark.parametrize(("written", "plain"), [("50%", "50%"), ("30.0 %", "30%"), ("0.5%", "0.5%"), ("100%", "100%")])
def test_shares_of_all_channels(written: str, plain: str) -> None:
    assert check_pattern(written) == plain


@pytest.mark.parametrize("pattern", ["0%", "0.0%", "101%"])
def test_shares_out_of_range(pattern: str) -> None:
    with pytest.raises(ValueError, match="0 < P <= 100"):
        check_pattern(pattern)


def test_held_out_text_is_the_calibration_dataset_unless_named() -> None:
    calibration = {"dataset": "org/text", "name": "small", "text_column": "content", "revision": "abc"}
    default = Recipe(model={"source": "a"}, calibration=calibration).held_out
    assert (default.dataset, default.name, default.text_column, default.revision) == (
        "org/text",
        "small",
        "content",
        "abc",
    )
    assert default.split == "validation"
    column = Recipe(model={"source": "a"}, calibration=calibration, evaluation={"text_column": "summary"}).held_out
    assert (column.dataset, column.text_column) == ("org/text", "summary")
    other = Recipe(
        model={"source": "a"}, calibration=calibration, evaluation={"dataset": "b.txt", "split": "all"}
    ).held_out
    assert (other.dataset, other.name, other.text_column, other.split) == ("b.txt", None, "text", "all")


def test_overlapping_text_is_allowed_when_nothing_is_measured() -> None:
    assert not Recipe(model={"source": "a"}, evaluation={"split": "train", "enabled": False}).evaluation.enabled


def test_recipes_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValidationError):
        recipe().sparsity.pattern = "2:4"  # type: ignore[misc]


SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "pattern": st.sampled_from(["1:2", "8:16", "64:64"]),
        "score": st.sampled_from(["magnitude", "weight_norm"]),
        "score_exponent": st.floats(0, 8),
        "targets": st.lists(st.text(min_size=1, max_size=6).filter(lambda s: s.strip()), min_size=1, max_size=3),
        "overrides": st.lists(
            st.builds(
                Override,
                modules=st.just("*.q_proj"),
                dense=st.none() | st.booleans(),
                shift=st.none() | st.sampled_from(["none", "static_scalar"]),
                variance_correction=st.none() | st.booleans(),
            ),
            max_size=3,
        ),
    },
)


@settings(deadline=None)
@given(SECTIONS)
def test_the_resolved_recipe_reads_back(sparsity: dict[str, object]) -> None:
    original = recipe(**sparsity)
    again = parse_recipe(original.to_yaml())
    assert again.sparsity == original.sparsity
    assert again.to_yaml() == original.to_yaml()
    assert [again.for_module(name) for name in (Q, K, DOWN)] == [original.for_module(name) for name in (Q, K, DOWN)]


@pytest.mark.parametrize("text", ["a\x85b", "\x85", "a\u2028b", "x\nb", "'\x85\"", " a "])
def test_line_ends_of_unicode_are_kept(text: str) -> None:
    assert yaml.safe_load(yaml_text({"text": text})) == {"text": text}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("mistralai/Mistral-7B-v0.3", "Mistral-7B-v0.3-8of16"),
        ("sample:smollm2-135m-instruct", "smollm2-135m-instruct-8of16"),
        ("/models/My Model/", "My-Model-8of16"),
        ("C:\\models\\tiny.gguf", "tiny-8of16"),
        ("..", "model-8of16"),
    ],
)
def test_default_names(source: str, name: str) -> None:
    assert Recipe(model={"source": source}).name == name


def test_output_folder() -> None:
    plain = Recipe(model={"source": "org/tiny"})
    assert plain.folder().as_posix() == "output/tiny-8of16"
    assert plain.folder("here").as_posix() == "here"
    assert Recipe(model={"source": "org/tiny"}, output_dir="there").folder().as_posix() == "there"


def test_sections_can_be_built_in_python() -> None:
    section = SparsitySection(pattern="4:8", overrides=[Override(modules="*.q_proj", dense=True)])
    assert recipe(**section.model_dump(exclude_none=True)).for_module(Q) is None
    assert Recipe(model={"source": "a"}, sparsity=section).for_module(K) == Scheme(pattern="4:8")


@pytest.mark.parametrize(
    ("sparsity", "parameters", "trains"),
    [
        ({}, ["shift", "scale", "bias"], False),
        ({"shift": "dynamic_mean"}, ["shift"], False),
        ({"output_scale": True}, ["scale", "weight"], True),
        ({"shift": "static_channel"}, ["bias"], False),
        ({"shift": "static_channel"}, ["shift"], True),
        ({"output_bias": "calibrated"}, ["bias"], True),
        ({"residual_rank": 2}, ["residual"], True),
        ({}, ["weight"], True),
        ({"overrides": [{"modules": "*", "residual_rank": 2}]}, ["residual"], True),
    ],
)
def test_a_recipe_that_trains_nothing_is_refused_when_it_is_read(sparsity, parameters, trains) -> None:
    text = yaml.safe_dump(
        {
            "model": {"source": "a/b"},
            "sparsity": sparsity,
            "learning": {"mode": "blockwise", "parameters": parameters},
        }
    )
    if trains:
        parse_recipe(text)
        return
    with pytest.raises(UserError, match="is blockwise, but nothing can be trained"):
        parse_recipe(text)


def test_what_differs_from_the_defaults_comes_first_when_asked_for() -> None:
    recipe = parse_recipe(
        "sparsity: {score: amber, targets: '*.up_proj'}\nmodel: {source: a/b}\nverify: {num_tokens: 9}\n"
    )
    text = recipe.to_yaml(changed_first=True)
    assert list(yaml.safe_load(text))[:3] == ["model", "sparsity", "verify"]
    assert list(yaml.safe_load(text)["sparsity"])[:3] == ["score", "targets", "pattern"]
    assert parse_recipe(text).to_yaml() == recipe.to_yaml()
    assert parse_recipe(text).to_yaml(changed_first=True) == text
