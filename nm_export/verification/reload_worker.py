"""Reload a published folder as a stranger would, where nm_export is not installed, and record what it computes.

Run as a script: `python reload_worker.py FOLDER INPUTS OUTPUTS THREADS DTYPE`. INPUTS (safetensors) holds `ids` and
the input of every pruned linear; OUTPUTS gets `logits` and, for each linear, `NAME#kept` and `NAME#output`. DTYPE is
what the weights are held in, as torch calls it.
"""

import sys
from pathlib import Path
from typing import Any

sys.modules["nm_export"] = None  # type: ignore[assignment]  # any import of it fails, even where it is installed

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402


def main(folder: str, inputs_file: str, outputs_file: str, threads: str, dtype: str) -> None:
    """Write what the reloaded model computes from the given inputs."""
    torch.set_num_threads(int(threads))  # sums are split by threads: bit-equality needs as many
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
    )
    model, report = loaded[0].eval(), loaded[1]
    # files of a base model may hold what the model leaves out; a parameter of sparsity is never theirs
    is_whole = any(Path(folder).glob("model*.safetensors"))
    surplus = [name for name in report["unexpected_keys"] if is_whole or ".nm_" in name]
    for what, names in (("lacks", report["missing_keys"]), ("has no place for", surplus)):
        if names:
            raise RuntimeError(f"the model {what} {', '.join(sorted(names)[:3])}")
    if type(model).__module__.startswith("nm_export"):
        raise RuntimeError("the folder was loaded with the installed package, not with its own code")
    inputs = load_file(inputs_file)
    outputs = {}
    with torch.no_grad():
        outputs["logits"] = model(input_ids=inputs.pop("ids"), use_cache=False).logits
        modules = model.nm_modules()
        for name, x in inputs.items():
            calls = (x, x[:, -1:])  # all tokens at once, then the last alone, as in decoding
            outputs[f"{name}#kept"] = torch.cat([modules[name].prune(call)[0] != 0 for call in calls], dim=1)
            outputs[f"{name}#output"] = torch.cat([modules[name](call) for call in calls], dim=1)
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, outputs_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
