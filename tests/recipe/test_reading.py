"""Recipe files as new users write them: every mistake is one sentence that names the place."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nm_export.errors import UserError
from nm_export.recipe import Recipe, load_recipe, parse_recipe

MODEL = "model: {source: some/model}\n"


def write(folder: Path, text: str | bytes, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_recipe(text, "r.yaml")
    message = str(caught.value)
    assert message.startswith("r.yaml")
    assert "\n" not in message
    return message


def outcome(text: str) -> bool:
    """Whether the text is a recipe, or is refused in one sentence."""
    try:
        parse_recipe(text, "r.yaml")
    except UserError as error:
        return "\n" not in str(error)
    return True


def test_scalars_mean_what_the_recipe_says_not_what_yaml_1_1_says() -> None:
    recipe = parse_recipe(
        "model: {source: no, revision: 1234567}\n"
        "sparsity: {pattern: 8:16, score_exponent: 1e-1, variance_correction: on, shift: none}\n"
        "calibration: {name: 2024-01-01, num_samples: 1_000}\n"
    )
    assert (recipe.model.source, recipe.model.revision) == ("no", "1234567")
    assert recipe.sparsity.pattern == "8:16"
    assert recipe.sparsity.score_exponent == 0.1
    assert recipe.sparsity.variance_correction is True
    assert recipe.calibration.name == "2024-01-01"
    assert recipe.calibration.num_samples == 1000


def test_an_empty_section_means_its_defaults() -> None:
    assert parse_recipe(MODEL + "sparsity:\n  # pattern: 4:8\nonnx: {}\n") == Recipe(model={"source": "some/model"})


def test_aliases_work_as_in_any_yaml_file() -> None:
    recipe = parse_recipe(
        MODEL + "sparsity: {targets: &some ['*.a', '*.b'], overrides: [{modules: *some, pattern: 2:4}]}"
    )
    assert recipe.sparsity.overrides[0].modules == ("*.a", "*.b")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('"a\\nb": 1', ["unknown key 'a\\nb'"]),
        (MODEL + f"calibration: {{num_samples: {'x' * 5000}}}", ["calibration.num_samples"]),
        ("modle: {source: a}", ["line 1", "unknown key modle", "did you mean model"]),
        (MODEL + "sparsity:\n  patern: 2:4", ["line 3", "sparsity.patern", "did you mean pattern"]),
        (MODEL + "sparsity: {zzzzz: 1}", ["known keys are", "pattern"]),
        (MODEL + "sparsity: {overrides: [{modules: x}, {modules: y, dens: true}]}", ["overrides[1].dens", "dense"]),
        (MODEL + "sparsity: {overrides: [{pattern: 2:4}]}", ["sparsity.overrides[0].modules is missing"]),
        (MODEL + "sparsity: {overrides: {modules: x}}", ["sparsity.overrides"]),
        (MODEL + "sparsity: {pattern: 9:8}", ["sparsity.pattern", "keeps 9 of 8"]),
        (MODEL + "sparsity: {pattern: 0:8}", ["1 <= N <= M <= 64"]),
        (MODEL + "sparsity: {pattern: 8:65}", ["1 <= N <= M <= 64"]),
        (MODEL + "sparsity: {pattern: half}", ["N:M"]),
        (MODEL + "sparsity: {score: wieght_norm}", ["did you mean weight_norm?", "did you mean weight_norm"]),
        (MODEL + "sparsity: {score_exponent: .nan}", ["score_exponent"]),
        (MODEL + "sparsity: {score_exponent: inf}", ["score_exponent"]),
        (MODEL + "sparsity: {targets: []}", ["sparsity.targets is empty"]),
        (MODEL + "sparsity: {targets: ['']}", ["sparsity.targets[0]"]),
        (MODEL + "sparsity: 2:4", ["sparsity is a single value", "mapping"]),
        (MODEL + "calibration: {num_samples: 0}", ["calibration.num_samples"]),
        (MODEL + "calibration: {num_samples: many}", ["calibration.num_samples is 'many'"]),
        (MODEL + "calibration: {num_samples: [1]}", ["calibration.num_samples is a list"]),
        (MODEL + "calibration: {seed: -1}", ["calibration.seed"]),
        (MODEL + "evaluation: {split: train}", ["calibration and evaluation read the same text", "evaluation.split"]),
        (MODEL + "calibration: {split: all}", ["the same text"]),
        (MODEL + "publish: {repo_id: a/b/c}", ["publish.repo_id", "user/name"]),
        (MODEL + "publish: {max_shard_size: 5}", ["publish.max_shard_size", "5GB"]),
        (MODEL + "onnx: {precision: fp64}", ["onnx.precision", "fp32"]),
        ("model: {source: a, dtype: float64}", ["model.dtype", "float32"]),
        ("model: {source: a, trust_remote_code: maybe}", ["model.trust_remote_code"]),
        ("model: {source: ''}", ["model.source"]),
        *(
            (MODEL + f"output_dir: {place}", ["output_dir", "outside of the working directory", "--output-dir"])
            for place in ("/etc/cron.d", "../other", "a/../../b", "~/.ssh", "C:/Windows", "C:x", r"\\host\share")
        ),
        ("model: some/model", ["model is a single value"]),
        ("sparsity: {}", ["model is missing"]),
        ("model:\n", ["model is empty"]),
        ("", ["not empty"]),
        ("- a", ["not a list"]),
        ("just words", ["not a single value"]),
        (MODEL + MODEL, ["line 2", "model is given twice", "line 1"]),
        (MODEL + "sparsity:\n  score: magnitude\n  score: magnitude", ["line 4", "sparsity.score is given twice"]),
        (MODEL + "sparsity: {targets: [*.q_proj]}", ["line 2, column 23", "quotes"]),
        (MODEL + "sparsity: {targets: *}", ["line 2", "quotes"]),
        (MODEL + "\tsparsity: {}", ["line 2, column 1", "tab"]),
        (MODEL + "sparsity: {", ["line 2"]),
        (MODEL + "? [a]\n: b", ["line 2", "a key must be one word"]),
        (MODEL + "---\n" + MODEL, ["line 2"]),
        (MODEL + "sparsity: {score: !!python/object:os.system x}", ["sparsity.score"]),
        (MODEL + "\x01", ["line 2", "not allowed"]),
        ("a: " + "[" * 3000, ["levels"]),
        ("a: &a [*a]", ["levels"]),
        ("%YAML 9999999.1\n---\na: 1", ["YAML"]),
    ],
)
def test_mistakes_are_named(text: str, parts: list[str]) -> None:
    message = refusal(text)
    for part in parts:
        assert part in message


def test_an_alias_bomb_is_refused() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n"
    for level in range(1, 12):
        bomb += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 8)}]\n"
    assert "20000 values" in refusal(bomb)


def test_a_huge_text_is_refused() -> None:
    assert "too many" in refusal("# " + "x" * 1_000_001)


def test_a_file_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")

    def peak() -> int:
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    path = write(tmp_path, MODEL)
    with path.open("r+b") as file:
        file.truncate(2**30)  # holes, which take no disk
    before = peak()
    with pytest.raises(UserError, match="too many"):
        load_recipe(path)
    assert peak() - before < 100_000  # KiB, or bytes on macOS


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    good = write(tmp_path, MODEL)
    assert load_recipe(good).model.source == "some/model"
    assert load_recipe(write(tmp_path, b"\xef\xbb\xbf" + MODEL.encode(), "bom.yaml")).model.source == "some/model"
    for path, part in [
        (tmp_path / "recpie.yaml", f"did you mean {good}"),
        (tmp_path / "nowhere" / "r.yaml", "no such recipe file"),
        (tmp_path, "is a folder"),
        (write(tmp_path, b"\xff\xfe\x00", "bytes.yaml"), "not a UTF-8"),
        (good / "below", "cannot be read"),
        (Path("nul\0"), "cannot be read"),
    ]:
        with pytest.raises(UserError, match=part):
            load_recipe(path)


def test_settings_are_yaml_and_win(tmp_path: Path) -> None:
    path = write(tmp_path, MODEL + "sparsity: {pattern: 2:4, overrides: [{modules: a, pattern: 4:8}]}\n")
    recipe = load_recipe(
        path,
        [
            "sparsity.pattern=8:16",
            "sparsity.targets=['*.q_proj', \"*.k_proj\"]",
            "sparsity.overrides.0.shift=dynamic_mean",
            "calibration.num_samples=3",
            "onnx.enabled=false",
            "model.revision=",
            "publish.commit_message=a=b",
        ],
    )
    assert recipe.sparsity.pattern == "8:16"
    assert recipe.sparsity.targets == ("*.q_proj", "*.k_proj")
    assert recipe.sparsity.overrides[0].shift == "dynamic_mean"
    assert recipe.sparsity.overrides[0].pattern == "4:8"
    assert recipe.calibration.num_samples == 3
    assert recipe.onnx.enabled is False
    assert recipe.model.revision is None
    assert recipe.publish.commit_message == "a=b"


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("sparsity.pattern", "key.path=value"),
        ("=1", "key.path=value"),
        ("sparsity..pattern=1", "key.path=value"),
        ("sparsity.patern=2:4", "did you mean pattern"),
        ("sparsity.pattern=9:8", "keeps 9 of 8"),
        ("sparsity.pattern.x=1", "single value"),
        ("sparsity.overrides.4.dense=true", "entries 0 to 0"),
        ("sparsity.targets=[*.q]", "quotes"),
        ("model.source={", "not valid YAML"),
    ],
)
def test_mistakes_in_settings_name_the_setting(tmp_path: Path, setting: str, part: str) -> None:
    path = write(tmp_path, MODEL + "sparsity: {pattern: 2:4, overrides: [{modules: a}]}\n")
    with pytest.raises(UserError) as caught:
        load_recipe(path, [setting])
    assert str(caught.value).startswith(f"--set {setting}")
    assert part in str(caught.value)


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_recipe_or_a_sentence(text: str) -> None:
    assert outcome(text)


WORDS = st.sampled_from(
    [
        "model",
        "source",
        "sparsity",
        "pattern",
        "overrides",
        "modules",
        "targets",
        "calibration",
        "8:16",
        "*",
        "dense",
        "",
    ]
)
LEAVES = st.one_of(WORDS, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates())
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=12,
)


@given(TREES)
@settings(max_examples=300, deadline=None)
def test_any_yaml_is_a_recipe_or_a_sentence(tree: object) -> None:
    assert outcome(yaml.safe_dump(tree, allow_unicode=True))


@given(st.dictionaries(st.sampled_from([*Recipe.model_fields, "x"]), TREES, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_section_is_a_recipe_or_a_sentence(sections: dict[str, object]) -> None:
    assert outcome(yaml.safe_dump({"model": {"source": "a"}} | sections, allow_unicode=True))


SHIPPED = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_change_of_a_shipped_recipe_is_a_recipe_or_a_sentence(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(SHIPPED)).read_text(encoding="utf-8")
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        put = data.draw(
            st.one_of(st.text(max_size=6), st.sampled_from(["\n", ": ", "- ", "[", "{", "*a", "&a ", "!!x "]))
        )
        text = text[:start] + put + text[end:]
    assert outcome(text)
