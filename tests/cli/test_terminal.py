"""What commands show: whole in files and pipes, laid out in terminals, and never lost to an encoding."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nm_export.cli import app
from nm_export.tables import Columns, Facts, Markdown, Sentences, time_in_words

ROOT = Path(__file__).parents[2]
MODULES = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
TABLE = Columns(
    ["module", "inputs x outputs", "pattern", "share of MACs"],
    [[name, f"{48 + 48 * index} x 48", "8:16", "5.8%"] for index, name in enumerate(MODULES)],
    numbers_from=3,
)


def lines_of(result, width, terminal=False):
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    console.print(result, crop=False)
    return console.file.getvalue().splitlines()


def test_a_table_is_as_wide_as_it_must_be_and_has_no_trailing_blanks():
    lines = lines_of(TABLE, 200)
    assert lines[0] == "module                           inputs x outputs  pattern  share of MACs"
    assert lines[1] == "model.layers.0.self_attn.q_proj  48 x 48           8:16              5.8%"
    assert len(lines) == 4


def test_a_narrow_table_drops_columns_that_say_the_same_and_cuts_no_name():
    lines = lines_of(TABLE, 45)
    text = "\n".join(lines)
    assert all(name in text for name in MODULES)
    assert "…" not in text
    assert " ".join(text.split()).endswith("In all rows: pattern: 8:16, share of MACs: 5.8%.")
    assert max(map(len, lines)) <= 45


def test_names_that_are_wider_than_the_window_stay_whole():
    lines = lines_of(TABLE, 20)
    assert [line for line in lines if MODULES[0] in line]


def test_facts_and_sentences_break_between_words_only():
    path = "/a/folder/with-a-very-long-name/and-another/README.md"
    facts = Facts([("Card", f"{path}, and report.html beside it")])
    assert path in lines_of(facts, 30)[0]
    assert lines_of(facts, 200) == [f"Card  {path}, and report.html beside it"]
    assert path in "\n".join(lines_of(Sentences(f"See {path} for more, and read it.", "1. ", "   "), 30))


def test_markdown_is_as_it_stands_in_a_file_and_a_table_in_a_terminal():
    source = "**tiny, fp32**\n\n| runtime | ratio |\n| --- | ---: |\n| ort \\| x | **1.25** |\n\n- read `this`\n"
    assert lines_of(Markdown(source), 80) == source.splitlines()
    assert lines_of(Markdown(source), 80, terminal=True) == [
        "tiny, fp32",
        "",
        "runtime  ratio",
        "ort | x   1.25",
        "",
        "- read this",
    ]
    assert lines_of(Markdown(source, plain=True), 80, terminal=True) == source.splitlines()


def test_help_has_no_boxes_and_no_types_for_flags():
    text = CliRunner().invoke(app, ["export", "--help"], prog_name="nm-export").stdout
    assert "<bool>" not in text
    assert "│" not in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_times():
    assert [time_in_words(s) for s in (1.25, 50, 300, 7200)] == ["1.2 s", "50 s", "5 min", "2.0 h"]


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932"])
def test_every_console_gets_the_answer(encoding):
    code = (
        "from nm_export.console import explained, show\n"
        "from nm_export.stages import Stages\n"
        "with explained(False), Stages().stage('x', 'Lesen von modèle'):\n"
        "    show('一 answer …')"
    )
    done = python(code, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert b"answer" in done.stdout
    assert b"Lesen von mod" in done.stderr
    if encoding == "ascii":
        assert done.stdout == b"? answer ...\n"
        assert done.stderr.startswith(b"* Lesen von mod?le ...\n")


def test_a_reader_that_has_seen_enough_ends_the_command_in_silence():
    """As `nm-export --help | true` does, whose end of the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    for words in (["--help"], ["export", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-m", "nm_export", *words],
            stdout=writer,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
        assert done.stderr == b"", done.stderr
        assert done.returncode in (0, 1)
    os.close(writer)


def test_foreign_bars_stay_out_of_logs():
    code = (
        "import nm_export.console as c\n"
        "with c.explained(False):\n"
        "    from tqdm.auto import tqdm\n"
        "    from huggingface_hub.utils import tqdm as hub\n"
        "    list(tqdm(range(3))), list(hub(range(3)))\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""


def test_a_dry_run_in_a_pipe_is_not_as_wide_as_a_terminal(tiny_source, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"model: {{source: {tiny_source}}}\ncalibration: {{num_samples: 8}}\n")
    words = ["recipe.yaml", "--dry-run", "-v", "--set", "calibration.sequence_length=64"]
    words += ["--set", "evaluation.num_samples=8", "--set", "evaluation.sequence_length=64"]
    done = subprocess.run(
        [sys.executable, "-m", "nm_export", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "40"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "model.layers.1.self_attn.q_proj  48 x 48           8:16     magnitude" in done.stdout
    assert "…" not in done.stdout
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]
    assert any(len(line) > 80 for line in done.stdout.splitlines())


def test_a_terminal_that_is_narrow_cuts_no_name(tiny_source, tmp_path):
    words = ["export", str(tiny_source), "--dry-run", "-v"]
    for section in ("calibration", "evaluation"):
        words += ["--set", f"{section}.num_samples=4", "--set", f"{section}.sequence_length=32"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "nm_export", *words],
        stdout=theirs,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "60", "TERM": "dumb"},
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        said += part
    assert process.wait() == 0, said
    text = said.decode()
    assert "model.layers.1.self_attn.q_proj" in text
    assert "score: magnitude" in " ".join(text.split())
