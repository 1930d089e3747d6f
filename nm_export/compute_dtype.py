"""In which type a run computes: what the weights are stored in, or float32 where half precision is slow.

CPUs without instructions for bfloat16 or float16 multiply them many times slower than float32. There a run holds the
stored numbers in float32, computes with them, and writes them in the type that they came in: unchanged weights keep
every bit, and those that were changed are rounded once, before anything is measured with them.
"""

import functools
import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nm_export.memory import fits

HALVES = (torch.bfloat16, torch.float16)
SLOWER = 1.5
"""How many times slower than in float32 products have to be before a run computes in float32."""

_TOKENS, _K, _O = 128, 1024, 1024
_ROUNDS, _SECONDS = 5, 0.3
_SETTINGS = ("auto", "float32", "stored")


@dataclass(frozen=True)
class ComputeType:
    """The type that a run computes in.

    Attributes:
        stored: of the weights in files.
        computed: of the weights in memory.
        why: the reason where it is worth a sentence, else "".
    """

    stored: torch.dtype
    computed: torch.dtype
    why: str = ""

    @property
    def is_wider(self) -> bool:
        """Whether the run computes in another type than it stores."""
        return self.stored != self.computed


def choose_compute_type(
    setting: str, stored: torch.dtype, parameters: int, earlier: torch.dtype | None = None
) -> ComputeType:
    """Decide in which type to compute on this machine's CPU.

    Args:
        setting: `model.compute_dtype` of the recipe: auto, float32 or stored.
        stored: type of the weights.
        parameters: how many numbers the model has.
        earlier: what was chosen when the same run began; taken as it is.
    """
    assert setting in _SETTINGS
    if stored not in HALVES or setting == "stored":
        return ComputeType(stored, stored)
    if setting == "float32":
        return ComputeType(stored, torch.float32, f"as the recipe says; the weights are stored as {name_of(stored)}")
    if earlier is not None:
        wider = earlier == torch.float32
        return ComputeType(stored, earlier, "as it began" if wider else "")
    times = slowdown(stored)
    if times < SLOWER:
        return ComputeType(stored, stored)
    slow = f"this machine multiplies {name_of(stored)} {times:.0f} times as slowly"
    if not fits(4 * parameters):
        return ComputeType(stored, stored, f"{slow}, but {4e-9 * parameters:,.1f} GB of float32 do not fit into memory")
    return ComputeType(stored, torch.float32, f"{slow}; the weights are stored as {name_of(stored)}")


@functools.cache
def slowdown(dtype: torch.dtype) -> float:
    """How many times as long a product takes in `dtype` as in float32: the quickest of several calls, taken in turn.

    What else the machine does meanwhile slows both.
    """
    calls = [(torch.ones(_TOKENS, _K, dtype=kind), torch.ones(_O, _K, dtype=kind)) for kind in (torch.float32, dtype)]
    best = [float("inf")] * len(calls)
    begin = time.perf_counter()
    with torch.inference_mode():
        for x, weight in calls:  # libraries prepare in the first call
            F.linear(x, weight)
        for _ in range(_ROUNDS):
            for index, (x, weight) in enumerate(calls):
                start = time.perf_counter()
                F.linear(x, weight)
                best[index] = min(best[index], time.perf_counter() - start)
            if time.perf_counter() - begin > _SECONDS:
                break
    return best[1] / best[0]


def name_of(dtype: torch.dtype) -> str:
    """`bfloat16` of `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def earlier_choice(record: Any, source: str) -> torch.dtype | None:
    """The type that was computed in, by the record of a base model that an earlier stage or run has left.

    Args:
        record: what `load_model` gave as provenance; None or anything else when there is none.
        source: the model's name now; the record of another one says nothing.
    """
    if not isinstance(record, dict) or record.get("source") != source:
        return None
    name = record.get("compute_dtype", record.get("dtype"))
    return getattr(torch, name, None) if isinstance(name, str) else None


def stored_types(model: Any, stored: torch.dtype) -> dict[str, torch.dtype]:
    """The types that a model's tensors have in files, by name: what transformers makes of them when it loads `stored`.

    Args:
        model: dense or sparse, in memory in a wider type.
        stored: type of most of them. Parameters of sparsity are float32 in any case.
    """
    base = getattr(model, "_base_class", None) or type(model)
    config = getattr(model.config, "base_config", model.config)
    with torch.device("meta"):
        twin = base._from_config(config, dtype=stored)
    plan = twin._get_dtype_plan(stored)
    known = {name: tensor.dtype for name, tensor in twin.state_dict().items()}
    kept = re.compile("|".join(rf"(?:^|\.){pattern.replace('*', '.*')}(?:\.|$)" for pattern in plan) or r"(?!)")
    types = {}
    for name, tensor in model.state_dict().items():
        if ".nm_" in name or not tensor.is_floating_point() or kept.search(name):
            types[name] = tensor.dtype
        else:
            types[name] = known.get(name, stored)
    return types


@torch.no_grad()
def round_weights(model: Any, stored: torch.dtype, names: Iterable[str] | None = None) -> None:
    """Give tensors, in place, the numbers that they will have in files; `names` are those that may have others."""
    types = stored_types(model, stored)
    tensors = model.state_dict()
    changed = set(tensors if names is None else names)
    for name in changed & tensors.keys():
        tensor = tensors[name]
        if types[name] != tensor.dtype:
            tensor.copy_(tensor.to(types[name]))
    if names is not None and hasattr(model, "nm_modules"):
        for name, module in model.nm_modules().items():
            if f"{name}.weight" in changed:
                module.update_offset()


def narrowed(model: Any, stored: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a model as they are stored; those that are one in memory stay one."""
    types = stored_types(model, stored)
    made: dict[tuple[int, torch.dtype], Tensor] = {}
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        key = id(tensor), types[name]
        if key not in made:
            made[key] = tensor.detach().to(types[name])
        state[name] = made[key]
    return state


def say_type_in(config_file: Path, stored: torch.dtype) -> None:
    """Let a `config.json`, written from a model in memory, name the type of the weights beside it."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    for part in (config, config.get("base_config", {})):
        if "dtype" in part:
            part["dtype"] = name_of(stored)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
