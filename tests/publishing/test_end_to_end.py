"""From a recipe to a Hub on loopback, and from there into fresh processes that load it both ways."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from nm_export.cli import app
from tests.publishing.hub_server import WRITE, Fault, HubServer
from tests.tiny_folder import tiny_recipe

LOAD = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from nm_export.errors import UserError
from nm_export.onnx import NMSparseORTModelForCausalLM, genai_model

repository, folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(repository, trust_remote_code=True)
ids = tokenizer("Published, and loaded again.", return_tensors="pt").input_ids
published = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True)(ids).logits
exported = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)(ids).logits
try:
    NMSparseORTModelForCausalLM.from_pretrained(repository)
except UserError as error:
    broken = str(error)
onnx = NMSparseORTModelForCausalLM.from_pretrained(repository)(ids).logits
largest = exported.abs().max().item()
difference = (onnx - exported).abs().max().item() / largest
genai = genai_model(repository).type
print(json.dumps({"equal": torch.equal(published, exported), "onnx": difference, "broken": broken, "genai": genai}))
"""


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def environment(tmp_path):
    """A home of its own, and a Hub with a name in HF_ENDPOINT once it is started."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": WRITE,
        "OMP_NUM_THREADS": "1",
    }


def killed_after_the_weights(command, environment, server):
    """Publish until all large files have arrived, then kill -9 the process at its commit."""
    started = threading.Event()
    fault = Fault("POST", "/commit/", act=lambda: (started.set(), process.wait(60)), cut="request")
    server.faults.insert(0, fault)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert started.wait(120)
    process.kill()
    process.wait()
    assert server.repositories["user/tiny"].files() == {}
    server.requests.clear()


def test_published_and_loaded_in_fresh_processes(exported, environment):
    with HubServer() as server:
        environment["HF_ENDPOINT"] = server.url
        server.part_size = 50_000
        weights, data = (sha256(exported / name) for name in ("model.safetensors", "onnx/model.onnx.data"))
        server.faults = [
            Fault("PUT", "/storage/", cut="request"),
            Fault("GET", weights, cut="end"),
            Fault("GET", weights, status=429, headers={"Retry-After": "0"}),
            Fault("GET", data, cut="response"),  # which huggingface_hub does not repeat
        ]
        command = [
            sys.executable,
            "-m",
            "nm_export.cli",
            "publish",
            str(exported),
            "--repo-id",
            "user/tiny",
            "--private",
        ]
        killed_after_the_weights(command, environment, server)
        published = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert published.returncode == 0, published.stderr
        assert f"{server.url}/user/tiny (" in published.stdout
        assert server.repositories["user/tiny"].private
        assert server.repositories["user/tiny"].moves == ["main", "main"]
        assert not server.count("PUT", f"/storage/({weights}|{data})")  # they had arrived before
        loaded = subprocess.run(
            [sys.executable, "-c", LOAD, "user/tiny", str(exported)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert loaded.returncode == 0, loaded.stderr
        assert not any(fault.times for fault in server.faults)
    found = json.loads(loaded.stdout.splitlines()[-1])
    assert found["equal"]
    assert found["onnx"] < 1e-4
    assert found["genai"]
    assert "user/tiny is neither a folder nor a repository that can be loaded" in found["broken"]


def test_a_recipe_is_published(hub, tiny_source, tmp_path):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tiny_source, evaluation={"enabled": False}).to_dict()))

    def run(*words):
        publishing = ["--push-to-hub", "--repo-id", "direct", "--revision", "new", *words]
        return CliRunner().invoke(app, [str(recipe), "--output-dir", str(out), "--skip-onnx", *publishing])

    repository = hub.create("user/direct", thesis__txt=b"mine")
    refused = run()
    assert refused.exit_code == 2
    assert "user/direct (new) holds something that nm-export did not write (thesis.txt)" in refused.stderr
    assert "Loading" not in refused.stderr
    assert not out.exists()
    assert "where files lie" not in refused.stderr

    hub.faults.append(Fault("POST", "/commit/", status=403))
    refused = run("--overwrite")
    assert refused.exit_code == 2
    assert f"user/direct will show where files lie here: model.source: {tiny_source}" in refused.stderr
    assert f"continue with `nm-export publish {out} --repo-id user/direct --revision new --overwrite`" in refused.stderr
    words = refused.stderr.split("`nm-export ")[1].split("`")[0].split()
    continued = CliRunner().invoke(app, words)
    assert continued.exit_code == 0, continued.output

    published = repository.files("new")
    card = (out / "README.md").read_text()
    assert 'from_pretrained("user/direct", trust_remote_code=True)' in card
    assert published == {path.name: path.read_bytes() for path in out.iterdir()}
    assert repository.files() == {"thesis.txt": b"mine"}
    assert repository.moves == ["main", "new"]
