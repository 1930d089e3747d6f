"""A base model and a model that leaves its weights there, on a Hub on loopback, and a reader who has neither."""

import json
import subprocess
import sys

import yaml

from tests.conftest import MIXED
from tests.publishing.hub_server import Fault, HubServer
from tests.publishing.test_end_to_end import environment, sha256
from tests.tiny_folder import tiny_recipe

__all__ = ["environment"]

PUBLISH = """
import sys
from huggingface_hub import HfApi
from nm_export.cli import main

base, recipe, folder = sys.argv[1:]
HfApi().create_repo("user/base")
HfApi().upload_folder(repo_id="user/base", folder_path=base)
sys.argv[1:] = [recipe, "--output-dir", folder, "--push-to-hub", "--repo-id", "user/small"]
main()
"""

LOAD = """
import json, sys
sys.modules["nm_export"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

full = sys.argv[1]
ids = AutoTokenizer.from_pretrained("user/small", trust_remote_code=True)("Fetched.", return_tensors="pt").input_ids

def logits(place, **options):
    model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True, **options)
    return model(ids).logits, model.generate(ids, max_new_tokens=4, do_sample=False)

try:
    logits("user/small")
except ValueError as error:
    refused = str(error)
found, expected = logits("user/small", force_download=True), logits(full)
again = logits("user/small", local_files_only=True)
print(json.dumps({
    "refused": refused,
    "equal": all(map(torch.equal, found, expected)) and all(map(torch.equal, again, expected)),
    "dtype": torch.equal(*(logits(place, dtype=torch.bfloat16)[0] for place in ("user/small", full))),
}))
"""


def run(script, *words, env):
    command = [sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_published_and_loaded_by_a_reader_who_has_neither(tiny_source, environment, tmp_path):
    sections = {"sparsity": MIXED, "evaluation": {"enabled": False}, "onnx": {"enabled": False}}
    values = tiny_recipe(tiny_source, **sections).to_dict()
    values["model"] |= {"source": "user/base"}
    values["publish"] |= {"weights": "reference"}
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "small"
    recipe.write_text(yaml.safe_dump(values))
    with HubServer() as server:
        environment["HF_ENDPOINT"] = server.url
        run(PUBLISH, tiny_source, recipe, folder, env=environment)
        commit = server.repositories["user/base"].branches["main"]
        published = server.repositories["user/small"].files()
        weights = sha256(tiny_source / "model.safetensors")
        named = json.loads(published["config.json"])["base_weights"]
        assert named["repo_id"] == "user/base"
        assert named["revision"] == commit
        assert named["files"] == {
            "model.safetensors": {"size": (tiny_source / "model.safetensors").stat().st_size, "sha256": weights}
        }
        assert "nm_parameters.safetensors" in published
        assert "model.safetensors" not in published

        full = tmp_path / "full"
        convert = "from nm_export.cli import main; main()"
        run(convert, "convert", folder, full, "--weights", "full", env=environment)
        server.repositories["user/base"].commit("main", {})  # the base model moves on; its old commit stays
        server.faults = [
            Fault("GET", weights, change=lambda body: body[:-1] + bytes([body[-1] ^ 1])),
            Fault("GET", weights, cut="end"),
            Fault("GET", weights, status=429, headers={"Retry-After": "0"}),
        ]
        found = json.loads(run(LOAD, full, env=environment | {"HF_HOME": str(tmp_path / "reader")}).splitlines()[-1])
        assert not any(fault.times for fault in server.faults)
    assert found["refused"].startswith("model.safetensors in user/base is not the file that this model was made from")
    assert (found["equal"], found["dtype"]) == (True, True)
