"""`optimum-cli export nm-sparse`: words become the recipe that `nm-export` would run, failures the same sentences."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.export.base import ExportCommand
from optimum.commands.optimum_cli import register_optimum_cli_subcommand

import nm_export
from nm_export import pipeline
from nm_export.errors import NMExportError
from nm_export.optimum_plugin.command import NMSparseExportCommand
from nm_export.recipe import Recipe
from tests.tiny_folder import tiny_recipe

PLUGIN = Path(nm_export.__file__).parent / "optimum_plugin" / "register"


def run(*words: object) -> None:
    """What `optimum-cli export nm-sparse WORDS` does, in this process."""
    root = RootOptimumCLICommand("Optimum CLI tool", usage="optimum-cli")
    register_optimum_cli_subcommand(ExportCommand, parent_command=root)
    [export] = root.registered_subcommands
    register_optimum_cli_subcommand(NMSparseExportCommand, parent_command=export)
    args = root.parser.parse_args(["export", "nm-sparse", *map(str, words)])
    args.func(args).run()


@pytest.fixture
def calls(monkeypatch):
    """The recipes and options that reach the pipeline."""
    recorded = []
    monkeypatch.setattr(pipeline, "run", lambda recipe, **options: recorded.append((recipe, options)))
    return recorded


def refused(capsys, *words: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    *progress, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert all(line.startswith("• ") for line in progress)
    return stopped.value.code, error


def test_a_model_and_options_make_a_recipe(calls):
    words = ["--pattern", "4:8", "--targets", "*.q_proj", "--targets", "*.k_proj", "--ignore", "*.0.*"]
    words += ["--score", "weight_norm", "--shift", "dynamic_mean", "--variance-correction", "--precision", "int4"]
    words += ["--dataset", "my: text", "--num-samples", "5", "--sequence-length", "64", "--revision", "1e3"]
    words += ["--trust-remote-code", "--dtype", "bfloat16", "--set", "verify.num_tokens=9"]
    run("some/model", "out", *words)
    [(recipe, options)] = calls
    assert recipe == Recipe(
        model={"source": "some/model", "revision": "1e3", "dtype": "bfloat16", "trust_remote_code": True},
        sparsity={
            "pattern": "4:8",
            "targets": ["*.q_proj", "*.k_proj"],
            "ignore": ["*.0.*"],
            "score": "weight_norm",
            "shift": "dynamic_mean",
            "variance_correction": True,
        },
        calibration={"dataset": "my: text", "num_samples": 5, "sequence_length": 64},
        onnx={"precision": "int4"},
        verify={"num_tokens": 9},
    )
    assert (options["output_dir"], options["overwrite"]) == ("out", False)


def test_every_form_of_naming_a_model(calls, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "model: {source: a/b}\nsparsity: {pattern: 2:4, score: amber}\ncalibration: {name: x, dataset: d}\n"
    )
    run("--model", "some/model", "out")
    run("-m", "some/model")
    run(file, "--pattern", "8:16", "--dataset", "e")
    run(file, "out", "-m", "some/model", "--private", "--overwrite", "--push-to-hub", "--repo-id", "me/it")
    seen = [
        (recipe.model.source, recipe.sparsity.pattern, recipe.sparsity.score, recipe.calibration.name)
        for recipe, _ in calls
    ]
    assert seen == [
        ("some/model", "8:16", "magnitude", None),
        ("some/model", "8:16", "magnitude", None),
        ("a/b", "8:16", "amber", None),
        ("some/model", "2:4", "amber", "x"),
    ]
    assert [options["output_dir"] for _, options in calls] == ["out", None, None, "out"]
    last = calls[-1][1]
    assert last["private"]
    assert last["overwrite"]
    assert last["push_to_hub"]
    assert last["repo_id"] == "me/it"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "name a recipe (a .yaml file) or a model"),
        (["some/model", "out", "more"], "'more' is one word too many"),
        (["no/such.yaml"], "there is no such recipe file"),
        (["some/model", "--pattern", "9:8"], "--pattern 9:8: sparsity.pattern"),
        (["some/model", "--num-samples", "lots"], "--num-samples lots: calibration.num_samples is 'lots'"),
        (["some/model", "--score", "wight_norm"], "did you mean weight_norm?"),
        (["some/model", "--set", "sparsity.patern=4:8"], "did you mean pattern?"),
        (["no/such/folder", "out"], "neither an existing folder nor a Hub id"),
    ],
)
def test_mistakes_are_one_sentence(capsys, tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    code, error = refused(capsys, *words)
    assert code == 2
    assert part in error


@pytest.mark.parametrize(("error", "code"), [(NMExportError("ours"), 1), (KeyboardInterrupt(), 130), (OSError(), 1)])
def test_exit_codes_are_those_of_nm_export(capsys, monkeypatch, error, code):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run", fail)
    assert refused(capsys, "some/model")[0] == code


@pytest.fixture
def environment(tmp_path):
    """An environment in which optimum finds the plugin: as the wheel installed it, or put beside these sources."""
    paths = [str(Path(nm_export.__file__).parents[1])]
    if importlib.util.find_spec("optimum.commands.register") is None:
        namespace = tmp_path / "namespace"
        shutil.copytree(PLUGIN, namespace / "optimum" / "commands" / "register")
        paths.append(str(namespace))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def test_the_real_command_exports(environment, tiny_source, tmp_path):
    """In a process of its own: the plugin is found, and what it writes is what the same recipe gives."""
    words = ["--pattern", "4:8", "--targets", "*.up_proj", "--num-samples", "6", "--sequence-length", "32"]
    words += ["--set", "calibration.batch_size=2", "--set", "evaluation.enabled=false", "--set", "verify.num_tokens=64"]
    command = [Path(sys.executable).parent / "optimum-cli", "export", "nm-sparse", tiny_source, "out", "--skip-onnx"]
    done = subprocess.run(
        [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    expected = pipeline.run(
        tiny_recipe(
            tiny_source,
            sparsity={"pattern": "4:8", "targets": ["*.up_proj"]},
            evaluation={"enabled": False, "num_samples": 24, "sequence_length": 512},
        ),
        output_dir=tmp_path / "expected",
        skip_onnx=True,
    )
    for name in ("recipe.yaml", "nm_export.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (expected.folder / name).read_bytes()
