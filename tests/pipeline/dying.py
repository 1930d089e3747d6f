"""Runs of a tiny recipe that die: a process that has imported everything forks one after the other.

`python -m tests.pipeline.dying RECIPE OUT` reads lines `KIND AMOUNT` and writes what became of the run, `done` or
`killed`. `seconds 1.5` kills it from outside after that time, `events 300` from within at the 300th file operation,
`never 0` lets it finish; of a finished run it says how long it took and how many file operations it needed.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from nm_export import pipeline
from nm_export.modeling import NMSparseForCausalLM
from nm_export.modeling.modeling_nm_sparse import plain_torch
from nm_export.recipe import load_recipe
from nm_export.verification import forms
from nm_export.verification.modules import record_modules

FILE_EVENTS = ("open", "os.", "shutil.", "tempfile.")


def reload_here(folder, ids, inputs, dtype):
    """Stand in for `reload_and_record`, whose own process spends seconds on imports and writes nothing of ours."""
    model = NMSparseForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad(), plain_torch():
        records = record_modules(model, inputs)
        return model(input_ids=ids, use_cache=False).logits, {n: (r.kept, r.output) for n, r in records.items()}


def main(recipe: str, out: str) -> None:
    torch.set_num_threads(1)
    forms.reload_and_record = reload_here  # ONNX Runtime is imported by the children: its threads do not survive a fork

    for line in sys.stdin:
        kind, amount = line.split()
        print(*_run(recipe, Path(out), kind, float(amount)), flush=True)


def _run(recipe: str, out: Path, kind: str, amount: float) -> tuple[object, ...]:
    reader, writer = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        events = _count_file_events(amount if kind == "events" else None)
        pipeline.run(load_recipe(recipe), output_dir=out)
        os.write(writer, str(events[0]).encode())
        os._exit(0)
    os.close(writer)
    if kind == "seconds":
        time.sleep(amount)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    took = time.monotonic() - start
    counted = os.read(reader, 100).decode()
    os.close(reader)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return ("killed",)
    assert os.WEXITSTATUS(status) == 0, status
    return "done", took, int(counted)


def _count_file_events(fatal: float | None) -> list[int]:
    count = [0]

    def hook(event: str, _: object) -> None:
        if event.startswith(FILE_EVENTS):
            count[0] += 1
            if count[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


if __name__ == "__main__":
    main(*sys.argv[1:])
