"""The command line: which call a line becomes, and what a user reads when it stops."""

import errno
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import nm_export
from nm_export.cli import app
from nm_export.errors import NMExportError, UserError
from nm_export.recipe import Recipe

RECIPE = "model: {source: some/model}\noutput_dir: out\n"


class RecordedCalls(ModuleType):
    """Stands in for the modules that the commands call: records calls, gives what a test wants."""

    def __init__(self) -> None:
        super().__init__("recorded")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.outcome: object = "all done [8:16]"
        for name in (
            "run",
            "dry_run",
            "verify_folder",
            "publish_folder",
            "generate",
            "enable_library",
            "disable_library",
        ):
            setattr(self, name, self._recorder(name))

    def _recorder(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> object:
            self.calls.append((name, args, options))
            if isinstance(self.outcome, BaseException):
                raise self.outcome
            return self.outcome

        return call


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> RecordedCalls:
    recorded = RecordedCalls()
    for module in ("pipeline", "dry_run", "generation", "onnx"):
        monkeypatch.setitem(sys.modules, f"nm_export.{module}", recorded)
    monkeypatch.setattr(nm_export, "pipeline", recorded, raising=False)
    return recorded


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `out` in the working directory that looks as if an export had written it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text('{"model_type": "nm_sparse"}')
    return tmp_path / "out"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), prog_name="nm-export")


def test_a_recipe_is_exported(pipeline: RecordedCalls, recipe: str) -> None:
    result = run(recipe)
    assert result.exit_code == 0, result.output
    assert "all done [8:16]" in result.stdout
    [(name, args, options)] = pipeline.calls
    assert (name, args) == ("run", (Recipe(model={"source": "some/model"}, output_dir="out"),))
    assert options == {
        "output_dir": None,
        "push_to_hub": False,
        "repo_id": None,
        "revision": None,
        "private": False,
        "create_pr": False,
        "skip_onnx": False,
        "overwrite": False,
        "verbose": False,
    }


@pytest.mark.parametrize("first", [True, False])
def test_options_reach_the_pipeline_wherever_they_stand(pipeline: RecordedCalls, recipe: str, first: bool) -> None:
    words = [
        "--push-to-hub",
        "--repo-id",
        "me/it",
        "--revision",
        "experiment",
        "--private",
        "--create-pr",
        "--skip-onnx",
        "--overwrite",
        "-v",
        "--output-dir",
        "x",
    ]
    words += ["--set", "sparsity.pattern=2:4", "--set", "calibration.seed=5"]
    result = run(*words, recipe) if first else run(recipe, *words)
    assert result.exit_code == 0, result.output
    [(name, (loaded,), options)] = pipeline.calls
    assert name == "run"
    assert (loaded.sparsity.pattern, loaded.calibration.seed) == ("2:4", 5)
    assert options == {
        "output_dir": Path("x"),
        "push_to_hub": True,
        "repo_id": "me/it",
        "revision": "experiment",
        "private": True,
        "create_pr": True,
        "skip_onnx": True,
        "overwrite": True,
        "verbose": True,
    }


def test_a_dry_run_runs_nothing(pipeline: RecordedCalls, recipe: str) -> None:
    assert run(recipe, "--dry-run").exit_code == 0
    [(name, _, options)] = pipeline.calls
    assert name == "dry_run"
    publishing = {"push_to_hub", "repo_id", "revision", "private", "create_pr"}
    assert set(options) == {"output_dir", *publishing, "skip_onnx", "overwrite", "every_module"}
    assert options["every_module"] is False
    run(recipe, "--dry-run", "--verbose")
    assert pipeline.calls[1][2]["every_module"] is True


def test_rich_results_are_rendered(pipeline: RecordedCalls, recipe: str) -> None:
    class Report:
        def __rich__(self) -> str:
            return "[bold]done[/bold]"

    pipeline.outcome = Report()
    assert run(recipe).stdout.strip() == "done"


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["verify", "out"], ("verify_folder", ("out",), {})),
        (["verify", "user/name"], ("verify_folder", ("user/name",), {})),
        (
            ["publish", "out", "--repo-id", "me/it", "--private"],
            (
                "publish_folder",
                (Path("out"),),
                {"repo_id": "me/it", "revision": None, "private": True, "create_pr": False, "overwrite": False},
            ),
        ),
        (["enable-genai", "out"], ("enable_library", (Path("out"),), {})),
        (["enable-genai", "out", "--off"], ("disable_library", (Path("out"),), {})),
        (
            ["generate", "out", "a b"],
            ("generate", ("out", "a b"), {"backend": "torch", "max_new_tokens": 64, "dense": False}),
        ),
        (
            ["generate", "out", "a", "--backend", "genai", "--max-new-tokens", "3", "--dense"],
            ("generate", ("out", "a"), {"backend": "genai", "max_new_tokens": 3, "dense": True}),
        ),
    ],
)
def test_commands(pipeline: RecordedCalls, out: Path, words: list[str], call: tuple[Any, ...]) -> None:
    assert run(*words).exit_code == 0
    assert pipeline.calls == [call]


@pytest.mark.parametrize(
    ("outcome", "code", "parts"),
    [
        (UserError("the folder exists already"), 2, ["error: the folder exists already"]),
        (NMExportError("the backends disagree"), 1, ["error: the backends disagree"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (MemoryError(), 2, ["not enough memory"]),
        (OSError(errno.ENOSPC, "No space left on device", "/big/file"), 2, ["disk is full: /big/file"]),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, ["no permission: /root/x"]),
        (OSError(errno.EROFS, "Read-only file system", "/ro"), 2, ["read-only: /ro"]),
        (RuntimeError("write failed\nNo space left on device (os error 28)"), 2, ["the disk is full (write failed"]),
        (ZeroDivisionError("division\nby zero"), 1, ["ZeroDivisionError: division by zero", "this is a bug"]),
        (FileNotFoundError(2, "No such file", "x"), 1, ["this is a bug"]),
    ],
)
def test_failures_are_one_sentence_and_an_exit_code(
    pipeline: RecordedCalls, recipe: str, outcome: BaseException, code: int, parts: list[str]
) -> None:
    pipeline.outcome = outcome
    result = run(recipe)
    assert result.exit_code == code
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    for part in parts:
        assert part in result.stderr


def test_verbose_shows_the_traceback(pipeline: RecordedCalls, recipe: str) -> None:
    pipeline.outcome = ZeroDivisionError("by zero")
    result = run(recipe, "-v")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: ZeroDivisionError")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["missing.yaml"], "missing.yaml: there is no such recipe file"),
        (["."], "is a folder"),
        (["verfy", "out"], "Did you mean verify?"),
        (["frobnicate"], "The commands are bench, card, convert"),
        (["disable-genai", "out"], "nm-export enable-genai FOLDER --off"),
        (["bench", "opps"], "Did you mean ops?"),
        (["nowhere/recipe.yaml"], "there is no such recipe file; give a YAML file that names a model"),
        (["generate", "nope", "hi"], "nope is no folder, nor is it a repository of the Hub (user/name)"),
        (["verify", "{recipe}"], "is a file; give a folder that nm-export wrote"),
        (["publish", "user/name"], "there is no folder user/name here, and publish needs one"),
        (["card", "user/name"], "hf download user/name --local-dir FOLDER"),
        (["convert", "user/name", "small", "--weights", "reference"], "and convert needs one"),
        (["enable-genai", "nope"], "nope is no folder"),
        (["{recipe}", "--set", "model.source=./nope"], "'./nope' is neither an existing folder nor a Hub id"),
        (["evaluate", "./nope"], "'./nope' is neither an existing folder nor a Hub id"),
        (["evaluate", ""], "name a model"),
        (["{recipe}", "--set", "sparsity.overrides.0.dense=true"], "the recipe has no sparsity.overrides"),
        (["{recipe}", "--overwrite", "true"], "unexpected extra argument"),
        (["{recipe}", "--set", "sparsity.patern=2:4"], "did you mean pattern?"),
        (["{recipe}", "--set", "sparsity"], "key.path=value"),
        (["{recipe}", "--push"], "No such option"),
        (["{recipe}", "another.yaml"], "unexpected extra argument"),
        (["--dry-run"], "Missing argument"),
        (["generate", "out"], "Missing argument"),
        (["generate", "out", "a", "--backend", "tpu"], "tpu"),
        (["generate", "out", "a", "--max-new-tokens", "0"], "max-new-tokens"),
    ],
)
def test_mistakes_on_the_line_end_with_code_2(
    pipeline: RecordedCalls, recipe: str, words: list[str], part: str
) -> None:
    result = run(*(word.format(recipe=recipe) for word in words))
    assert result.exit_code == 2
    assert part.lower() in result.stderr.lower()
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert "nm-export export" not in result.stderr.replace("nm-export export --help", "")
    assert "Traceback" not in result.output
    assert pipeline.calls == []


def test_a_file_named_like_a_command_is_still_a_recipe(
    pipeline: RecordedCalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("verifi").write_text(RECIPE)
    Path("verify").write_text(RECIPE)
    assert run("verifi").exit_code == 0
    assert run("./verify").exit_code == 0
    assert run("export", "verify").exit_code == 0
    assert [call[0] for call in pipeline.calls] == ["run"] * 3


def test_help() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for part in ("recipes/mistral_8of16.yaml", "--version", "verify", "generate", "RECIPE"):
        assert part in result.stdout
    options = run("any.yaml", "--help")
    assert options.exit_code == 0
    for part in ("--push-to-hub", "--dry-run", "--set", "--skip-onnx", "--overwrite", "--output-dir"):
        assert part in options.stdout
    assert run().exit_code == 2, "nothing asked is a mistake, answered with the help"


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["recipe.yaml", "--help"],
        ["missing.yaml"],
        ["frobnicate"],
        ["{recipe}", "--set", "model.source=./nope"],
        ["generate", "{tmp}", "hi"],
        ["verify", "{tmp}"],
        ["bench", "{tmp}"],
        ["evaluate", "{tmp}"],
        ["publish", "{tmp}"],
        ["card", "{tmp}"],
        ["convert", "{tmp}", "small", "--weights", "full"],
    ],
)
def test_nothing_heavy_is_imported_to_answer(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from nm_export.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'transformers', 'onnx', 'onnxruntime', 'datasets'} & set(sys.modules)))"
    )
    root = Path(nm_export.__file__).parents[1]
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = [word.format(tmp=tmp_path, recipe=tmp_path / "recipe.yaml") for word in words]
    finished = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=root, check=False
    )
    assert finished.stdout.strip().endswith("[]"), finished.stdout + finished.stderr


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("nm-export ")
