"""What `test_memory.py` runs: export a tiny model, then one of 170 MB, and print what memory each stage took.

Run as `python -m tests.pipeline.memory_process FOLDER`. One weight of the larger model is a tenth of
all, so that whole copies show, in float32 and more so in float64.
"""

import json
import sys
import time
from pathlib import Path

from transformers import MistralConfig

from nm_export import pipeline
from nm_export.recipe import Recipe
from tests.pipeline.bench_memory import Sampler, anonymous_bytes, make_checkpoint, watched_stages
from tests.tiny_folder import SIZES

TINY = {**SIZES, "head_dim": 16}
LARGER = {**SIZES, "head_dim": 64, "hidden_size": 1024, "intermediate_size": 8192, "num_attention_heads": 16}
LARGER |= {"num_hidden_layers": 3, "num_key_value_heads": 4}


def recipe(source: Path) -> Recipe:
    return Recipe.from_dict(
        {
            "model": {"source": str(source)},
            "sparsity": {
                "score": "smoothquant",
                "shift": "static_channel",
                "overrides": [
                    {"modules": "*.down_proj", "score": "amber", "shift": "dynamic_mean"},
                    {"modules": "*.gate_proj", "score": "weight_norm", "shift": "none"},
                ],
            },
            "calibration": {"num_samples": 4, "sequence_length": 16, "batch_size": 2, "block_by_block": True},
            "evaluation": {"num_samples": 2, "sequence_length": 16},
            "verify": {"enabled": False},
        }
    )


def main(folder: Path) -> None:
    for name, sizes in (("tiny", TINY), ("larger", LARGER)):
        config = MistralConfig(**sizes, sliding_window=None, dtype="bfloat16")
        make_checkpoint(folder / name, config, shard_bytes=50_000_000)
    pipeline.run(recipe(folder / "tiny"), output_dir=folder / "tiny-export")
    before = anonymous_bytes()
    with Sampler() as sampler, watched_stages(sampler):
        time.sleep(0.05)
        pipeline.run(recipe(folder / "larger"), output_dir=folder / "larger-export")
    sizes = {
        "weights": sum(file.stat().st_size for file in (folder / "larger").glob("*.safetensors")),
        "onnx": (folder / "larger-export" / "onnx" / "model.onnx.data").stat().st_size,
    }
    print(json.dumps({"before": before, "peaks": sampler.peaks, **sizes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
