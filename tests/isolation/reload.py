"""Reload a golden folder with transformers alone and compare; run by reload_without_nm_export.sh.

Usage: python reload.py MODEL_FOLDER EXPECTED
EXPECTED (safetensors) holds `ids` int64 `[1, T]` and `logits` float32 `[1, T, V]`.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM


def linked(folder: Path, directory: Path) -> Path:
    """The folder as the Hub's cache lays it out: links to blobs without a name."""
    snapshot, blobs = directory / "snapshots" / "commit", directory / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = blobs / f"{number:040x}"
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


def main(folder: str, expected_file: str) -> None:
    """Exit with 1 and a sentence when a reloaded model computes something else."""
    assert importlib.util.find_spec("nm_export") is None, "nm_export is installed here"
    expected = load_file(expected_file)
    with tempfile.TemporaryDirectory() as directory:
        for place in (Path(folder), linked(Path(folder), Path(directory))):
            model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True).eval()
            headless = AutoModel.from_pretrained(place, trust_remote_code=True).eval()
            with torch.no_grad():
                logits = model(expected["ids"]).logits
                hidden = headless(expected["ids"]).last_hidden_state
                with_head = model.get_output_embeddings()(hidden)
            for name, actual in (("AutoModelForCausalLM", logits), ("AutoModel and the head", with_head)):
                error = float((actual - expected["logits"]).abs().max())
                print(f"{name} from {place}: logits differ by {error:.1e} at most")
                if not error <= 1e-5:
                    sys.exit(f"{name} from {place} computes other logits")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}: equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
