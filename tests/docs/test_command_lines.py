"""Every command line in the documentation, the recipes and the help texts can be given as it is printed."""

import importlib.util
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.export.base import ExportCommand
from optimum.commands.optimum_cli import register_optimum_cli_subcommand
from typer.core import TyperGroup

from nm_export import cli
from nm_export.optimum_plugin.command import NMSparseExportCommand, read_arguments
from nm_export.recipe import load_recipe, recipe_from_settings
from tests.docs.blocks import PAGES, ROOT, blocks

EXTERNAL = {
    "cd",
    "cmake",
    "ctest",
    "build/tests/nm_topk_benchmark",
    "build/tests/product_benchmark",
    "wheel/bin/python",
}
"""Commands of which only the name is known."""

COMMANDS = {"nm-export", "optimum-cli", "make", "pip", "python", "accelerate", "torchrun", *EXTERNAL}
"""What a block that names no language begins with, if it holds command lines."""

MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def command_lines() -> Iterator[tuple[str, str]]:
    """Where each command line stands, and the line."""
    for block in blocks("", "sh", "bash", "console"):
        text = re.sub(r" *\\\n *", " ", block.code)
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if block.language or lines[0].split()[0] in COMMANDS:
            yield from ((str(block), line) for line in lines)
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        for line in re.findall(r"^# +(nm-export .*?)(?:   .*)?$", path.read_text(), flags=re.M):
            yield path.name, line
    for line in re.findall(r"^ +(nm-export .*)$", inspect.getsource(cli), flags=re.M):
        yield "cli.py", line


def mentions() -> Iterator[tuple[str, str]]:
    """Where the prose speaks of a command, and what of it is written: required arguments may be missing."""
    for path in PAGES:
        prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
        for line in re.findall(r"`((?:nm-export|optimum-cli) [^`\n]+)`", prose):
            yield path.name, line


LINES = sorted(set(command_lines()))
MENTIONS = sorted(set(mentions()))


@pytest.mark.parametrize(("where", "line"), LINES, ids=[f"{where} {line[:50]}" for where, line in LINES])
def test_a_command_line_can_be_given(where, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in line.split(" && "):
        check(shlex.split(command, comments=True))


@pytest.mark.parametrize(("where", "line"), MENTIONS, ids=[f"{where} {line[:50]}" for where, line in MENTIONS])
def test_what_prose_mentions_exists(where, line):
    try:
        check(shlex.split(line))
    except Exception as error:
        if type(error).__name__ not in ("MissingParameter", "NoArgsIsHelpError"):  # of the click inside typer
            raise


def check(words: list[str]) -> None:
    """Parse one command, as far as it is ours. Raises what its parser raises, or AssertionError."""
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    program, *rest = words
    if program == "nm-export":
        check_nm_export(rest)
    elif program == "optimum-cli":
        check_optimum(rest)
    elif program == "make":
        check_make(rest)
    elif program.split("/")[-1] == "pip":
        check_pip(rest)
    elif program in ("python", "accelerate", "torchrun") and "-m" in rest:
        at = rest.index("-m")
        module = rest[at + 1]
        if module == "nm_export":
            check_nm_export(rest[at + 2 :])
        else:
            assert module == "build" or importlib.util.find_spec(module), f"there is no module {module}"
    elif program.endswith((".sh", ".md", ".json")):
        assert (ROOT / program).is_file(), f"there is no {program}"
    else:
        assert program in EXTERNAL, f"{program} is no command that is known here"


def check_nm_export(words: list[str]) -> None:
    """Parse as the command does, and read the settings."""
    command = typer.main.get_command(cli.app)
    context = command.make_context("nm-export", list(words))
    while isinstance(command, TyperGroup):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    settings = context.params.get("settings") or ()
    file = Path(str(context.params.get("recipe", "")))
    if file.is_file():
        load_recipe(file, settings)
    elif settings:
        rest = [setting for setting in settings if ".overrides." not in setting]  # of a recipe that is the reader's
        recipe_from_settings(["model.source=some/model", *rest])


def check_optimum(words: list[str]) -> None:
    root = RootOptimumCLICommand("Optimum CLI tool", usage="optimum-cli")
    register_optimum_cli_subcommand(ExportCommand, parent_command=root)
    register_optimum_cli_subcommand(NMSparseExportCommand, parent_command=root.registered_subcommands[0])
    if words != ["export", "nm-sparse"]:
        read_arguments(root.parser.parse_args(words))


def check_make(words: list[str]) -> None:
    for word in words:
        variable, equals, _ = word.partition("=")
        pattern = rf"\$\({variable}\)" if equals else rf"^{word}:"
        assert re.search(pattern, MAKEFILE, flags=re.M), f"the Makefile does not know {word}"


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    for word in words[1:]:
        for extra in re.findall(r"^(?:\.|nm_export)\[([\w,]+)\]$", word):
            assert set(extra.split(",")) <= EXTRAS, f"there is no extra {extra}"


def test_extras_named_in_prose_exist():
    for path in PAGES:
        for extras in re.findall(r"nm_export\[([\w,]+)\]", path.read_text()):
            assert set(extras.split(",")) <= EXTRAS, f"{path.name}: nm_export[{extras}]"


def test_the_lines_are_found():
    """A reader of the pages that finds nothing would check nothing."""
    pages = {where.partition(":")[0] for where, _ in LINES}
    assert {"README.md", "docs/recipes.md", "docs/evaluation.md", "docs/kernels.md", "docs/learning.md"} <= pages


@pytest.mark.parametrize(
    "line",
    [
        "nm-export recipes/smollm2_8of16.yaml --pattern 4:8",
        "nm-export recipes/smollm2_8of16.yaml --set sparsity.patern=4:8",
        "nm-export bench ops --architecture smollm2 --token 4",
        "nm-export evaluate",
        "optimum-cli export nm-sparse model out --patern 4:8",
        "optimum-cli export nm-sparse model out --pattern 9:8",
        "make tests",
        "make results WIKI=file",
        "pip install 'nm_export[gen]'",
        "accelerate launch -m nm_export recipe.yaml --output out",
        "python -m nm_export.nothing",
        "tests/kernels/nothing.sh",
        "nmexport recipe.yaml",
    ],
)
def test_what_cannot_be_given_is_found(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, SystemExit)):
        check(shlex.split(line))
