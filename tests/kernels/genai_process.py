"""Use the library in onnxruntime, onnxruntime-genai and onnxruntime again, in one process.

Usage: python genai_process.py FOLDER LIBRARY_NAME

FOLDER holds model.onnx, one NMTopK of 2:4, and the library. genai only opens the model, which it cannot do without the
library; the one node is no language model.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og
import pytest


def run_with_onnxruntime(folder: Path, library: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(folder / library))
    session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    ones = np.ones(8, np.float32)
    values, _ = session.run(None, {"x": np.arange(8, dtype=np.float32), "score": ones, "shift": 0 * ones})
    assert values.tolist() == [0, 0, 2, 3, 0, 0, 6, 7]
    return session


def open_with_genai(folder: Path, library: str) -> og.Model:
    decoder = {
        "session_options": {"custom_ops_library": library} if library else {},
        "filename": "model.onnx",
        "head_size": 4,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "inputs": {"input_ids": "x"},
        "outputs": {"logits": "values"},
    }
    tokens = {"vocab_size": 8, "context_length": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = {"model": {"type": "llama", "decoder": decoder, **tokens}, "search": {"max_length": 8}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    return og.Model(str(folder))


if __name__ == "__main__":
    folder, library = Path(sys.argv[1]), sys.argv[2]
    with pytest.raises(Exception, match="NMTopK"):
        open_with_genai(folder, "")
    kept_alive = run_with_onnxruntime(folder, library), open_with_genai(folder, library)
    run_with_onnxruntime(folder, library)
    print("both opened it")
