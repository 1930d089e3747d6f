"""The methods of arXiv 2509.22166 as its formulas read: plain and slow, and sharing no code with the package.

`python -m tests.calibration.paper_methods [METHOD ...]` compares the package with them on SmolLM2-135M: the perplexity
of both, on windows of the built-in text, and their ratio with its standard error over the windows. A pruned model is
chaotic: rounding alone flips channels. `--perturbed R` says how much, by R more copies of the package's model whose
embeddings are changed by some 1e-7 of themselves. Linear by linear both are equal.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

# What a recipe says to get each method from the package.
RECIPES = {
    "magnitude": {},
    "s_pts_scalar": {"shift": "static_scalar"},
    "s_pts_channel": {"shift": "static_channel"},
    "d_pts_mean": {"shift": "dynamic_mean"},
    "d_pts_median": {"shift": "dynamic_median"},
    "var": {"variance_correction": True},
    "amber": {"score": "amber"},
    "clact": {"score": "clact"},
    "clact_noncausal": {"score": "clact_noncausal"},
}


def keep_largest(score: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """1 where an entry is among the n largest of its group of m, 0 elsewhere; the first of equal ones is larger."""
    mask = torch.zeros_like(score)
    for first in range(0, score.shape[-1], m):
        chosen = score[..., first : first + m].sort(dim=-1, descending=True, stable=True).indices[..., :n]
        mask[..., first : first + m].scatter_(-1, chosen, 1.0)
    return mask


def standardised(weight: torch.Tensor) -> torch.Tensor:
    """Amber's What: mean and deviation are those of the weights inside the 0.5 and 99.5 percentiles."""
    ordered = weight.flatten().double().sort().values

    def percentile(p: float) -> torch.Tensor:
        at = p / 100 * (len(ordered) - 1)
        low, part = math.floor(at), at - math.floor(at)
        return ordered[low] * (1 - part) + ordered[min(low + 1, len(ordered) - 1)] * part

    inside = ordered[(ordered >= percentile(0.5)) & (ordered <= percentile(99.5))]
    return (weight.double() - inside.mean()) / inside.std(unbiased=False)


def outputs(method: str, linear: nn.Linear, x: torch.Tensor, calibration: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Y of one linear; `x` is `[batch, tokens, K]`, `calibration` `[tokens, K]` of the dense model."""
    e = torch.zeros(())
    if method == "s_pts_scalar":  # mean of the tokens' medians
        e = calibration.median(dim=-1).values.mean()
    elif method == "s_pts_channel":
        e = calibration.mean(dim=0)
    elif method == "d_pts_mean":
        e = x.mean(dim=-1, keepdim=True)
    elif method == "d_pts_median":
        e = x.median(dim=-1, keepdim=True).values
    z = x - e
    score = z.abs()
    if method == "amber":
        score = score * standardised(linear.weight).norm(dim=0).float()
    elif method == "clact":
        score = score * calibration.norm(dim=0) / x.norm(dim=-1, keepdim=True)
    elif method == "clact_noncausal":
        score = score * x.flatten(0, -2).norm(dim=0) / x.norm(dim=-1, keepdim=True)
    pruned = z * keep_largest(score, n, m)
    if method == "var":
        pruned = pruned * (x.var(dim=-1, keepdim=True) / pruned.var(dim=-1, keepdim=True)).sqrt()
    y = (pruned + e) @ linear.weight.T
    return y if linear.bias is None else y + linear.bias


def decoder_linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "lm_head" not in name
    }


def calibration_inputs(model: nn.Module, sequences: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each linear of the dense model reads, `[tokens, K]`, all of it."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        linear.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].flatten(0, -2)))
        for name, linear in decoder_linears(model).items()
    ]
    with torch.no_grad():
        model(sequences)
    for hook in hooks:
        hook.remove()
    return seen


@contextmanager
def pruned(
    model: nn.Module, method: str, calibration: dict[str, torch.Tensor], n: int = 8, m: int = 16
) -> Iterator[nn.Module]:
    """Within the block, every decoder linear of a dense model computes the method."""

    def patched(name: str, linear: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: outputs(method, linear, x, calibration[name], n, m)

    linears = decoder_linears(model)
    for name, linear in linears.items():
        linear.forward = patched(name, linear)
    try:
        yield model
    finally:
        for linear in linears.values():
            del linear.forward


@torch.no_grad()
def log_probabilities(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(window[None]).logits.log_softmax(-1) for window in windows])


def losses(predictions: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of each window, `[windows]`."""
    return -predictions[:, :-1].gather(-1, windows[:, 1:, None]).double().mean(dim=(1, 2))


def ratio(own: torch.Tensor, other: torch.Tensor) -> str:
    """Of two perplexities, from the losses of the same windows, with its standard error."""
    gap = own - other
    return f"{math.expm1(gap.mean()):+.2%} \N{PLUS-MINUS SIGN} {gap.std() / len(gap) ** 0.5:.2%}"


@torch.no_grad()
def perturb_(model: nn.Module, seed: int) -> None:
    """Change the embeddings by about one unit in the last place, relatively 1e-7."""
    weight = model.get_input_embeddings().weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight.copy_(weight.double() * (1 + 1e-7 * noise))


def package(dense: nn.Module, method: str, text: torch.Tensor) -> nn.Module:
    """The package's model, of the dense one; q, k and v calibrated each by itself, as the paper does."""
    from nm_export.calibration import calibrate
    from nm_export.modeling import NMSparseForCausalLM
    from nm_export.plan import make_plan
    from nm_export.recipe import Recipe

    plan = make_plan(dense, Recipe(model={"source": "in-memory"}, sparsity={"pattern": "8:16", **RECIPES[method]}))
    sparsity = plan.sparsity()
    sparsity["input_groups"] = [[name] for group in sparsity["input_groups"] for name in group]
    sparse = NMSparseForCausalLM.from_dense(dense, sparsity)
    calibrate(sparse, text)
    return sparse


def main() -> None:
    from nm_export.calibration.text import token_sequences
    from nm_export.recipe import CalibrationSection, EvaluationSection, ModelSection
    from nm_export.sources import load_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(RECIPES))
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--perturbed", type=int, default=0)
    arguments = parser.parse_args()
    section = ModelSection(source="sample:smollm2-135m-instruct")
    dense, tokenizer, _ = load_model(section)
    text = token_sequences(tokenizer, CalibrationSection(num_samples=4, sequence_length=256))
    held_out = EvaluationSection(dataset="builtin:python-docs", num_samples=arguments.windows, sequence_length=512)
    windows = token_sequences(tokenizer, held_out)
    inputs = calibration_inputs(dense, text)

    def of(model: nn.Module) -> torch.Tensor:
        return torch.cat([losses(log_probabilities(model, window[None]), window[None]) for window in windows])

    print(f"dense {of(dense).mean().exp():.3f}", flush=True)
    for method in arguments.methods:
        with pruned(dense, method, inputs):
            theirs = of(dense)
        ours = package(load_model(section)[0], method, text)
        own = of(ours)
        both = f"package {own.mean().exp():.3f}, formulas {theirs.mean().exp():.3f}"
        print(f"{method}: {both}, {ratio(own, theirs)}", flush=True)
        for seed in range(arguments.perturbed):
            copy = package(load_model(section)[0], method, text)
            perturb_(copy, seed)
            print(f"{method}: package with changed embeddings, {ratio(of(copy), own)}", flush=True)


if __name__ == "__main__":
    main()
