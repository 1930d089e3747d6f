"""Peak anonymous memory of each stage of the road, for a synthetic checkpoint with the layers of a 7B model.

Run as `python -m tests.pipeline.bench_memory FOLDER [--layers L] [--set KEY=VALUE ...]`. The checkpoint (random
weights in bfloat16, shards of 500 MB) is made in FOLDER first, and the export is written beside it. Anonymous memory is
what `RssAnon` of /proc/self/status says, read every 5 ms by a thread: mapped files are not part of it.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedConfig

from tests.tiny_folder import character_tokenizer

SHARD_BYTES = 500_000_000


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


class Sampler:
    """Watches anonymous memory from a thread.

    Attributes:
        peaks: the largest value in bytes, by stage.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.stage = "start"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peaks[self.stage] = max(self.peaks.get(self.stage, 0), anonymous_bytes())


def make_checkpoint(folder: Path, config: PreTrainedConfig, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a checkpoint of small random weights shard by shard, and a tokenizer."""
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in AutoModelForCausalLM.from_config(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    shard: dict[str, torch.Tensor] = {}
    index: dict[str, str] = {}
    count = 0

    def flush() -> None:
        nonlocal count
        count += 1
        name = f"model-{count:05d}.safetensors"
        index.update(dict.fromkeys(shard, name))
        save_file(shard, folder / name, metadata={"format": "pt"})
        shard.clear()

    for name, shape in shapes.items():
        if len(shape) == 1:
            tensor = torch.ones(shape, dtype=torch.bfloat16)
        else:
            tensor = torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > shard_bytes:
            flush()
        shard[name] = tensor
    flush()
    total = sum(shape.numel() * 2 for shape in shapes.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    config.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)


@contextmanager
def watched_stages(sampler: Sampler) -> Iterator[None]:
    """Within the block, tell the sampler which stage runs."""
    from nm_export.stages import Stages

    original = Stages.stage

    @contextmanager
    def stage(self: Stages, name: str, description: str) -> Iterator[None]:
        sampler.stage = name
        with original(self, name, description):
            yield
        sampler.stage = f"after {name}"

    Stages.stage = stage  # type: ignore[method-assign]
    try:
        yield
    finally:
        Stages.stage = original  # type: ignore[method-assign]


def run(source: Path, target: Path, settings: list[str]) -> None:
    """Run the whole road and print the peaks as JSON."""
    from nm_export import pipeline
    from nm_export.recipe.reading import load_recipe

    recipe_file = source.parent / "recipe.yaml"
    recipe_file.write_text(
        f"model: {{source: {source}}}\n"
        "sparsity: {score: smoothquant, shift: static_channel}\n"
        "calibration: {num_samples: 8, sequence_length: 128, block_by_block: true}\n"
        "evaluation: {num_samples: 1, sequence_length: 128}\n"
        "verify: {num_tokens: 32}\n"
    )
    recipe = load_recipe(recipe_file, settings)
    start = time.monotonic()
    with Sampler() as sampler, watched_stages(sampler):
        sampler.stage = "imported"
        time.sleep(0.1)
        try:
            pipeline.run(recipe, output_dir=target, overwrite=True)
        finally:
            print(json.dumps({"seconds": time.monotonic() - start, "peaks": sampler.peaks}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    source, target = arguments.folder / "checkpoint", arguments.folder / "export"
    if arguments.inner:
        run(source, target, arguments.settings)
        return
    if not source.exists():
        sizes = {"vocab_size": arguments.vocabulary, "num_hidden_layers": arguments.layers}
        sizes["max_position_embeddings"] = 32768
        special = {"bos_token_id": 96, "eos_token_id": 97}
        make_checkpoint(source, MistralConfig(**sizes, **special, sliding_window=None, dtype="bfloat16"))
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    command = [sys.executable, "-m", "tests.pipeline.bench_memory", *sys.argv[1:], "--inner"]
    result: dict[str, Any] = json.loads(
        subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    )
    print(f"checkpoint: {size / 1e9:.2f} GB; {result['seconds']:.0f} s")
    for stage, peak in result["peaks"].items():
        print(f"{stage:24} {peak / 1e6:8.0f} MB  {peak / size:6.1%}")


if __name__ == "__main__":
    main()
