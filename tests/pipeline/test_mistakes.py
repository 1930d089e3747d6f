"""What a new user does wrong, through the command line: one sentence, the right exit code, earlier exports intact.

Starting Python and its libraries takes seconds, so that only cases that depend on a process of their own have one.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from nm_export import pipeline
from nm_export.cli import app
from nm_export.errors import UserError
from tests.tiny_folder import tiny_recipe

USER, OURS = 2, 1


class Workplace:
    """A folder with a recipe, and the command as a user runs it there."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model, self.out = root, model, root / "out"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "PYTHONPATH": os.pathsep.join([str(root / "site"), str(Path(__file__).parents[2])]),
            "HF_HOME": str(root / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.write_recipe(model=model)

    def write_recipe(self, model, **sections):
        values = tiny_recipe(model, **{"evaluation": {"enabled": False}, **sections}).to_dict()
        values["output_dir"] = "out"
        (self.root / "recipe.yaml").write_text(yaml.safe_dump(values))

    def command(self, *words):
        return [sys.executable, "-m", "nm_export.cli", str(self.root / "recipe.yaml"), *map(str, words)]

    def run(self, *words):
        """Run the command in a process of its own."""
        return subprocess.run(
            self.command(*words), cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=500
        )

    def run_here(self, *words):
        """Run the command in this process."""
        with contextlib.chdir(self.root):
            result = CliRunner().invoke(app, self.command(*words)[3:])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)

    def start(self, *words):
        """Start the command in a process group of its own, as a terminal does."""
        return subprocess.Popen(
            self.command(*words),
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            # a shell without job control starts background jobs deaf to Ctrl-C, and so their children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def block_network(self):
        """Let every connection and name look-up fail, whatever the library."""
        self.environment.pop("HF_HUB_OFFLINE")
        (self.root / "site").mkdir()
        (self.root / "site" / "sitecustomize.py").write_text(
            "import socket\n"
            "def refuse(*args, **options):\n"
            "    raise socket.gaierror(-3, 'Temporary failure in name resolution')\n"
            "socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse\n"
        )

    def change_model(self, change):
        """Give the recipe a copy of the model whose weights file was changed."""
        broken = shutil.copytree(self.model, self.root / "broken")
        change(broken / "model.safetensors")
        self.write_recipe(model=broken)

    def state(self):
        """Everything at the output and beside it, whatever its name."""
        return {
            str(path): path.read_bytes() if path.is_file() else None
            for path in self.root.rglob("*")
            if path.is_relative_to(self.out) or path.name.startswith(".out")
        }


def refused(result, exit_code, message):
    """Assert one sentence on stderr, after the stages that went well."""
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    lines = result.stderr.strip().splitlines()
    said = r"(• .* …|• \w+: done.*|  \d+\.\d s|  .*, \d+:\d\d(, about .* left)?)$"
    stages = [line for line in lines if re.match(said, line)]
    sentences = [line for line in lines if line not in stages]
    assert len(sentences) == 1, result.stderr
    assert sentences[0].startswith("error: ")
    assert re.search(message, sentences[0]), sentences[0]


@pytest.fixture(scope="session")
def earlier_export(tiny_source, tmp_path_factory):
    recipe = tiny_recipe(tiny_source, verify={"enabled": False}, evaluation={"enabled": False})
    return pipeline.run(recipe, output_dir=tmp_path_factory.mktemp("earlier") / "out", skip_onnx=True).folder


@pytest.fixture
def place(tmp_path, tiny_source, earlier_export):
    """A workplace with an earlier export at the output."""
    workplace = Workplace(tmp_path, tiny_source)
    shutil.copytree(earlier_export, workplace.out)
    return workplace


def drop_a_tensor(file):
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


def put_a_nan(file):
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})


def damage_the_header(file):
    content = bytearray(file.read_bytes())
    content[20:40] = b"\xff" * 20
    file.write_bytes(content)


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-1000])


def remove(file):
    file.unlink()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("sparsity.patern=4:8", "unknown key sparsity.patern; did you mean pattern"),
        ("sparsity.pattern=4of8", "'4of8' is not a pattern; write N:M"),
        ("sparsity.pattern=9:8", "keeps 9 of 8"),
        ("model.dtype=float64", "model.dtype is 'float64'; it must be .*float32"),
        ("calibration.num_samples=lots", "calibration.num_samples is 'lots'"),
        ("calibration.dataset=builtin:python-doc", "there is no builtin:python-doc; the built-in text is"),
        ("calibration.dataset=texts/mine.txt", r"there is no file texts/mine\.txt"),
        ("calibration.num_samples=100000000", "tokens, but 100,000,000 sequences of 32 need .*; lower"),
        ("model.source=no/such/folder", "neither an existing folder nor a Hub id"),
        ("model.source=missing.gguf", r"there is no file missing\.gguf"),
        (
            "sparsity.pattern=8:32",
            r"q_proj has 48 input channels \(K\), which M = 32 of the pattern 8:32 does not divide",
        ),
        ('sparsity.targets="*.c_attn"', r'sparsity\.targets: "\*\.c_attn" matches no linear layer'),
        ('sparsity.ignore="*"', "leave every layer dense"),
    ],
)
def test_recipes_that_cannot_be_meant(settings, message, place):
    before = place.state()
    refused(place.run_here("--overwrite", "--skip-onnx", "--set", settings), USER, message)
    assert place.state() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("sparsity.patern=4:8", "unknown key sparsity.patern; did you mean pattern"),
        (
            "sparsity.pattern=8:32",
            r"q_proj has 48 input channels \(K\), which M = 32 of the pattern 8:32 does not divide",
        ),
    ],
)
def test_recipes_that_cannot_be_meant_in_a_process(settings, message, place):
    before = place.state()
    refused(place.run("--overwrite", "--set", settings), USER, message)
    assert place.state() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_a_tensor, r"lacks the tensors model\.layers\.1\.mlp\.down_proj\.weight"),
        (damage_the_header, r"broken/model\.safetensors is damaged or incomplete"),
        (cut_short, r"broken/model\.safetensors is damaged or incomplete"),
        (put_a_nan, r"holds NaN or infinite values in model\.layers\.1\.mlp\.up_proj\.weight"),
        (remove, r"has no weights \(\*\.safetensors\)"),
    ],
)
def test_damaged_models(change, message, place):
    place.change_model(change)
    before = place.state()
    refused(place.run_here("--overwrite", "--skip-onnx"), USER, message)
    assert place.state() == before


def test_activations_that_overflow(place):
    def enlarge(file):
        tensors = load_file(file)
        tensors["model.layers.0.mlp.up_proj.weight"] *= 3e4
        save_file(tensors, file, metadata={"format": "pt"})

    place.change_model(enlarge)
    before = place.state()
    settings = ("--set", "model.dtype=float16", "--set", "sparsity.shift=static_channel")
    refused(place.run_here("--overwrite", "--skip-onnx", *settings), USER, r"down_proj holds NaN or inf.*float32")
    assert place.state() == before


@pytest.mark.parametrize("push", [False, True])
def test_no_network(push, place):
    place.block_network()
    if not push:
        place.write_recipe(model="someone/some-model")
        result = place.run("--overwrite")
        refused(result, USER, r"someone/some-model is no local folder and cannot be fetched .*check the network")
    else:
        place.environment["HF_TOKEN"] = "hf_" + "a" * 34
        refused(
            place.run("--overwrite", "--push-to-hub"), USER, "cannot reach the Hugging Face Hub .*; check the network"
        )


def test_publishing_needs_a_token_before_anything_is_done(place):
    place.environment.pop("HF_HUB_OFFLINE")
    before = place.state()
    result = place.run("--overwrite", "--push-to-hub")
    refused(result, USER, "needs a Hugging Face token: run `hf auth login` or set HF_TOKEN")
    assert "Loading" not in result.stderr
    assert place.state() == before


def test_publishing_unverified(place):
    refused(
        place.run("--overwrite", "--push-to-hub", "--set", "verify.enabled=false"), USER, "nothing is published unver"
    )


def test_the_output_is_in_the_way(place):
    before = place.state()
    refused(place.run_here(), USER, r"out holds an exported model; pass --overwrite to replace it")
    assert place.state() == before


def test_the_output_belongs_to_the_user(place):
    file, thesis = place.root / "file", place.root / "thesis"
    file.write_text("mine")
    refused(place.run_here("--output-dir", file, "--overwrite"), USER, "file is a file; choose another --output-dir")
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("mine")
    result = place.run_here("--output-dir", thesis, "--overwrite")
    refused(result, USER, "thesis holds something that nm-export did not write")
    assert file.read_text() == (thesis / "chapter.txt").read_text() == "mine"


@pytest.fixture
def mount(tmp_path):
    """A small file system of its own; mount(size) returns its folder, mount("remount,ro") makes it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system needs root")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True, check=False)


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("words", "stage"), [(["--skip-onnx"], "write"), ([], "onnx")])
def test_full_disk(words, stage, place, mount):
    place.out = mount("size=450k" if stage == "write" else "size=700k") / "out"  # an export is 270 kB, 530 with ONNX
    shutil.copytree(place.root / "out", place.out)
    before = files_below(place.out)
    result = place.run("--overwrite", "--output-dir", place.out, *words)
    refused(result, USER, "the disk is full.*make room or choose another folder")
    assert files_below(place.out) == before
    workspace = place.out.parent / ".out.work"
    assert set(place.out.parent.iterdir()) == {place.out, workspace}
    # what the failed stage has written is gone, what was finished before is not
    assert (workspace / "calibrated.safetensors").is_file()
    assert (workspace / "model" / "model.safetensors").exists() == (stage == "onnx")
    assert not (workspace / "model" / "onnx").exists()
    mount("remount,size=2m")
    result = place.run_here("--overwrite", "--output-dir", place.out, *words)
    assert result.returncode == 0, result.stderr
    assert "calibrate: done, taken as it is" in result.stderr
    assert os.listdir(place.out.parent) == ["out"]  # noqa: PTH208


def test_read_only_disk(place, mount):
    disk = mount("size=1m")
    mount("remount,ro")
    refused(place.run("--output-dir", disk / "out"), USER, r"disk cannot be written \(Read-only file system\); choose")


def test_no_permission(place):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (place.root / "locked").mkdir(mode=0o555)
    refused(place.run("--output-dir", "locked/out"), USER, r"locked cannot be written \(Permission denied\)")


def start_and_wait_for(place, stage):
    process = place.start("--overwrite")
    for line in process.stderr:
        if stage in line:
            return process
    pytest.fail(f"the command ended before {stage}")


@pytest.mark.parametrize(
    ("stage", "number", "kept"),
    [
        ("Reading text", signal.SIGINT, None),
        ("Exporting", signal.SIGINT, "calibrate, write"),
        ("Verifying", signal.SIGTERM, "calibrate, write, onnx"),
    ],
)
def test_interrupted(stage, number, kept, place):
    before = place.state()
    process = start_and_wait_for(place, stage)
    if stage == "Verifying":
        time.sleep(1)  # by now another process reloads the model
    os.killpg(process.pid, number)
    stderr = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + number
    assert "Traceback" not in stderr
    [sentence] = [line for line in stderr.splitlines() if line.startswith("error: ")]
    after = place.state()
    assert {path: after[path] for path in before} == before
    if kept is None:
        assert sentence == "error: interrupted; nothing was finished yet, the same command starts again"
        assert after == before
        return
    assert f"what was finished (plan, {kept}) is kept in {place.root / '.out.work'}" in sentence
    result = place.run_here("--overwrite")
    assert result.returncode == 0, result.stderr
    for name in kept.split(", "):
        assert f"• {name}: done, taken as it is" in result.stderr
    assert [path.name for path in place.root.glob(".out*")] == []


def test_kill_and_run_another_recipe(place):
    before = place.state()
    process = start_and_wait_for(place, "Verifying")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    left = {path: content for path, content in place.state().items() if path not in before}
    assert left, "killed too late for this test"
    assert {path: content for path, content in place.state().items() if path in before} == before

    (place.root / ".outer.work").mkdir()  # somebody else's
    result = place.run_here("--overwrite", "--skip-onnx", "--set", "sparsity.pattern=2:4")
    assert result.returncode == 0, result.stderr
    assert "• calibrate: done again, sparsity changed" in result.stderr
    assert [path.name for path in place.root.glob(".out*")] == [".outer.work"]
    schemes = json.loads((place.out / "config.json").read_text())["sparsity"]["schemes"]
    assert [scheme["pattern"] for scheme in schemes] == ["2:4"]
    assert not (place.out / "onnx").exists()


def test_nobody_is_asked_anything(place):
    """A question would make an unattended run wait, or end it."""
    result = place.run("--overwrite")
    assert result.returncode == 0, result.stderr
    assert "Do you wish" not in result.stdout
    assert "Load it" in result.stdout


def test_a_sparse_model_is_not_made_sparse_again(exported, tmp_path):
    with pytest.raises(UserError, match="has N:M sparsity already"):
        pipeline.run(tiny_recipe(exported), output_dir=tmp_path / "again")


def test_no_home(place):
    """As for a service whose user has none: the folder does not exist and cannot be made."""
    for name in [name for name in place.environment if name.startswith(("HF_", "XDG_"))]:
        del place.environment[name]
    place.environment["HOME"] = "/proc/nobody"
    result = place.run("--skip-onnx", "--overwrite")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in place.root.iterdir()} == {"out", "recipe.yaml"}
