"""Run an exported graph in whatever ONNX Runtime is installed, compiled and through its function bodies.

Usage: python check_onnx.py ONNX_FOLDER LIBRARY [LOGITS]
LOGITS (.npz) holds `ids` int64 `[1, T]` and `logits` float32 `[1, T, V]`. Without it, both ways must agree on the first
logits. Needs onnxruntime and numpy only.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def logits(folder: Path, library: str | None, ids: np.ndarray) -> np.ndarray:
    """float32 `[1, T, V]` of a prompt without a cache."""
    options = onnxruntime.SessionOptions()
    if library:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    wanted = {}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            wanted[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        else:
            wanted[value.name] = feeds[value.name]
    return session.run(["logits"], wanted)[0]


def main(folder: str, library: str, expected_file: str | None = None) -> None:
    """Exit with 1 and a sentence when the graph does not open or computes something else."""
    place = Path(folder)
    if expected_file:
        with np.load(expected_file) as file:
            ids, expected = file["ids"], file["logits"]
    else:
        vocabulary = json.loads((place / "genai_config.json").read_text(encoding="utf-8"))["model"]["vocab_size"]
        ids, expected = np.arange(3, 19, dtype=np.int64)[None] % vocabulary, None
    for name, path in (("compiled kernel", library), ("function body", None)):
        try:
            actual = logits(place, path, ids)
        except Exception as error:
            sys.exit(f"onnxruntime {onnxruntime.__version__}, {name}: {error}")
        if expected is None:
            expected = actual[:, :1]
        error = float(np.abs(actual[:, : expected.shape[1]] - expected).max() / np.abs(expected).max())
        print(f"onnxruntime {onnxruntime.__version__}, {name}: logits differ by {error:.1e} of the largest")
        if not error <= 1e-4:
            sys.exit(f"onnxruntime {onnxruntime.__version__}, {name}: other logits")


if __name__ == "__main__":
    main(*sys.argv[1:])
