"""Every recipe that ships fits its architecture, and does its whole work on a tiny model of that architecture."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from nm_export import pipeline
from nm_export.errors import UserError
from nm_export.plan import Plan, make_plan
from nm_export.recipe import Recipe, load_recipe
from tests.recipes.architectures import tiny_config, true_config
from tests.tiny_folder import write_tiny_folder

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
PAPER = {path.stem for path in RECIPES if path.parent.name == "paper"}

# one of each architecture, and of each kind of node that the graph can hold; the graph itself is tested elsewhere
WITH_ONNX = {
    "smollm2_8of16_all",
    "llama3.1_8b_instruct_8of16",
    "qwen2.5_7b_instruct_8of16",
    "gemma3_4b_it_8of16",
    "magnitude_50pct",
    "rsparse6_8of16",
    "weight_pruning_8of16",
}

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def _plan_of_true_shapes(recipe: Recipe) -> Plan:
    with FakeTensorMode():
        return make_plan(AutoModelForCausalLM.from_config(true_config(recipe.model.source)), recipe)


def _few_numbers(recipe: Recipe, source: Path) -> Recipe:
    """The same recipe on a tiny model with little text: everything that is done is done, only shorter."""
    text = {"dataset": "builtin:python-docs", "num_samples": 4, "sequence_length": 32, "batch_size": 2}
    sections = recipe.model_dump(mode="json", exclude_none=True)
    sections["model"] = {"source": str(source)}
    sections["calibration"] = text
    sections["evaluation"] = {**text, "split": "validation", "num_samples": 2}
    sections["learning"] |= {
        "num_samples": 2,
        "sequence_length": 16,
        "batch_size": 1,
        "gradient_accumulation": 1,
        "epochs": 1,
        "held_out_samples": 1,
    }
    # the proof starts a process of its own, which takes longer than all the rest
    sections["verify"] = {"enabled": False}
    return Recipe.from_dict(sections)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """From a recipe's source to a folder with a tiny model of its architecture; each is written once."""
    folders: dict[str, Path] = {}

    def folder(source: str) -> Path:
        if source not in folders:
            folders[source] = write_tiny_folder(tmp_path_factory.mktemp("tiny") / "model", tiny_config(source))
        return folders[source]

    return folder


@every_recipe
def test_fits_its_architecture(path: Path) -> None:
    recipe = load_recipe(path)
    plan = _plan_of_true_shapes(recipe)
    assert plan.pruned
    assert 0 < plan.saved_share < 1
    if path.stem in PAPER:
        assert len(plan.pruned) == len(plan.linears), "the paper prunes every linear"


@every_recipe
def test_says_what_it_is(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    if path.stem in PAPER:
        title, colon, source = first.removeprefix("# ").partition(": ")
        assert title, first
        assert colon, first
        assert "arXiv " in source, first
        assert load_recipe(path).folder() == Path("output/paper") / path.stem


@every_recipe
def test_runs_end_to_end(path: Path, tiny_folder, tmp_path: Path) -> None:
    shipped = load_recipe(path)
    recipe = _few_numbers(shipped, tiny_folder(shipped.model.source))
    summary = pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=path.stem not in WITH_ONNX)
    assert summary is not None
    assert summary.perplexity is not None
    assert summary.perplexity["sparse"] > 0
    assert (tmp_path / "out" / "onnx" / "model.onnx").is_file() == (path.stem in WITH_ONNX)
    learning = json.loads((tmp_path / "out" / "measurements.json").read_text())["learning"]
    assert (learning is not None) == (recipe.learning.mode != "none")
    if learning is not None:
        assert all(torch.isfinite(torch.tensor(learning["losses"])))


@every_recipe
def test_prunes_at_the_pattern_in_its_name(path: Path) -> None:
    named = re.search(r"_(?:(\d+)of(\d+)|(\d+)pct)(?:_|$)", path.stem)
    pattern = load_recipe(path).sparsity.pattern
    if named is None:
        assert path.stem == "smollm2_half"  # named after its budget
    else:
        assert pattern == (f"{named[3]}%" if named[3] else f"{named[1]}:{named[2]}")


def test_with_onnx_names_recipes() -> None:
    assert {path.stem for path in RECIPES} >= WITH_ONNX


def test_output_folders_differ() -> None:
    folders = [load_recipe(path).folder() for path in RECIPES]
    assert len(set(folders)) == len(folders)


def test_every_pattern_and_method_of_the_paper_is_there() -> None:
    patterns = {load_recipe(path).sparsity.pattern for path in RECIPES if path.stem.startswith("magnitude_")}
    assert patterns == {"2:4", "4:8", "8:16", "16:32", "50%", "30%"}
    assert {name for name in PAPER if not name.startswith("magnitude_")} >= {
        f"{method}_8of16"
        for method in (
            *("weight_pruning", "clact", "clact_noncausal", "amber", "weight_norm", "pcs", "rsparse6", "var"),
            *("dpts_mean", "dpts_median", "spts_scalar", "spts_channel", "lpts", "ls", "ls_lpts", "amber_var"),
        )
    }


@every_recipe
def test_shares_in_comments_are_right(path: Path) -> None:
    said = re.search(r"do (\d+) % of the multiplications of all linear layers", path.read_text(encoding="utf-8"))
    if said is not None:
        assert round(100 * _plan_of_true_shapes(load_recipe(path)).pruned_share) == int(said[1])


def test_rsparse_adds_what_its_comment_says() -> None:
    for name, added in (("rsparse6_8of16", "1.7 %"), ("rsparse64_8of16", "18.4 %")):
        path = FOLDER / "paper" / f"{name}.yaml"
        plan = _plan_of_true_shapes(load_recipe(path))
        assert f"{100 * plan.added_share:.1f} %" == added
        assert f"{added} more MACs" in path.read_text(encoding="utf-8")


def test_published_clact_has_no_onnx_form(tiny_folder, tmp_path: Path) -> None:
    path = FOLDER / "paper" / "clact_noncausal_8of16.yaml"
    shipped = load_recipe(path)
    assert not shipped.onnx.enabled
    asked = shipped.model_copy(update={"onnx": shipped.onnx.model_copy(update={"enabled": True})})
    with pytest.raises(UserError, match="clact_noncausal"):
        pipeline.run(_few_numbers(asked, tiny_folder(shipped.model.source)), output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
