"""What each pruned linear keeps of its input, and what that does to its output, in one pass over a text."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nm_export.arguments import require_sparse
from nm_export.batches import check_vocabulary, read_tokens
from nm_export.progress import track


@dataclass(frozen=True)
class LayerScore:
    """One linear of the decoder on its own: errors of the layers before it are in its input, not in this.

    Attributes:
        retained_energy: |kept z|^2 / |z|^2 over all tokens, 0 to 1, where z is the shifted input; before any variance
            correction. None when the input is not pruned, no token came by, or a value is not finite.
        output_error: |y - y_dense| / |y_dense| over all tokens, where y is the linear's output with everything that
            repairs it and y_dense is the same weight's on the same input, unpruned. None likewise.
        state: `both`, `prefill` or `decode`, the calls that prune its input when the model is used; `weights` where
            weights are pruned, whose dense values are gone; `dense` where nothing is.
    """

    retained_energy: float | None
    output_error: float | None
    state: str


@dataclass(frozen=True)
class LayerScores:
    """The result of `score_layers`.

    Attributes:
        modules: every linear of the decoder by name, in the model's order.
        tokens: tokens that were read.
    """

    modules: dict[str, LayerScore]
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def score_layers(model: Any, windows: Any, description: str = "Measuring layers") -> LayerScores:
    """Measure every pruned linear on the inputs that it gets in the sparse model.

    All of them prune, whatever their phase, so that linears that prune single tokens only are measured too, on tokens
    of a text. Sums are float64, and nothing but sums is kept from one window to the next.

    Args:
        model: an `NMSparseForCausalLM`.
        windows: token ids, int64 `[windows, length]` or whatever else `nm_export.batches.read_tokens` takes.
        description: label of the progress bar.

    Raises:
        UserError: the model is not sparse, or there are no tokens.
    """
    require_sparse(model, "score_layers")
    tokens = check_vocabulary(read_tokens(windows, "score_layers"), model, "score_layers")
    sums = {name: torch.zeros(4, dtype=torch.float64, device=model.device) for name in model.nm_modules()}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output, terms = _measured(module, args[0], output)
            sums[name] += terms.to(sums[name].device)
            return output

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.nm_modules().items()]
    try:
        with torch.inference_mode():
            for row in track(tokens, description, total=len(tokens)):
                model.base_model(input_ids=row.unsqueeze(0).to(model.device), use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    schemes = model.config.sparsity["schemes"]
    weights = {name for scheme in schemes if scheme["prune"] == "weights" for name in scheme["modules"]}
    modules = {}
    for name, module in model.named_modules():
        if name in sums:
            modules[name] = _score(sums[name].tolist(), module.phase)
        elif isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            modules[name] = LayerScore(None, None, "weights" if name in weights else "dense")
    return LayerScores(modules, tokens.count)


def _measured(module: Any, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """The pruned output, and the sums of squares of z, of what is kept of it, of the output error and of the output."""
    if module.phase == "decode":  # a prompt goes through it unpruned; one token to a sequence is a call of decoding
        x = x.reshape(-1, 1, x.shape[-1])
        output = module.forward(x).reshape(output.shape)
    values, token_shift = module.prune(x)
    z = x.float() - (token_shift if module.nm_shift is None else module.nm_shift)
    kept = torch.where(values != 0, z, 0.0)
    dense = F.linear(x, module.weight, module.bias).reshape(output.shape)
    terms = [part.double().square().sum() for part in (z, kept, output.double() - dense.double(), dense)]
    return output, torch.stack(terms)


def _score(sums: list[float], state: str) -> LayerScore:
    energy, kept, error, dense = sums
    return LayerScore(_ratio(kept, energy), _root(_ratio(error, dense)), state)


def _ratio(part: float, whole: float) -> float | None:
    ratio = part / whole if whole > 0 else math.nan
    return ratio if math.isfinite(ratio) else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)
