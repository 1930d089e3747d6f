"""What a recipe means for one model: which linears are pruned, how, and which of them share one selection."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nm_export.causality import check_causal
from nm_export.errors import UserError
from nm_export.modeling.configuration_nm_sparse import SPARSITY_VERSION
from nm_export.modeling.modeling_nm_sparse import group_size
from nm_export.recipe import Recipe, Scheme, SparsitySection

_SELECTION = ("pattern", "grouping", "score", "score_exponent", "shift", "variance_correction", "phase")
"""Fields of a scheme that decide what is kept; the others come after the product."""


@dataclass(frozen=True)
class PlannedLinear:
    """One linear of the decoder: `O x K` weight, its scheme (None: dense) and the number of the input it reads."""

    name: str
    in_features: int
    out_features: int
    scheme: Scheme | None
    input_id: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one token, dense."""
        return self.in_features * self.out_features

    @property
    def pruned_macs(self) -> float:
        """Multiply-accumulates for one token that the pattern saves."""
        if self.scheme is None:
            return 0.0
        n, m = group_size(self.scheme.pattern, self.in_features)
        return self.macs * (1 - n / m)

    @property
    def added_macs(self) -> int:
        """Multiply-accumulates for one token that a residual adds."""
        return self.scheme.residual_rank * (self.in_features + self.out_features) if self.scheme else 0


@dataclass(frozen=True)
class Plan:
    """Every linear of the decoder layers, in the model's order. The head and the embeddings are not among them."""

    linears: tuple[PlannedLinear, ...]

    @property
    def pruned(self) -> tuple[PlannedLinear, ...]:
        """The linears that are pruned."""
        return tuple(linear for linear in self.linears if linear.scheme)

    @property
    def pruned_share(self) -> float:
        """Share of the decoder linears' multiply-accumulates that belongs to pruned linears, 0 to 1."""
        return sum(linear.macs for linear in self.pruned) / sum(linear.macs for linear in self.linears)

    @property
    def saved_share(self) -> float:
        """Share of the decoder linears' multiply-accumulates that need not be computed, 0 to 1."""
        return sum(linear.pruned_macs for linear in self.linears) / sum(linear.macs for linear in self.linears)

    @property
    def added_share(self) -> float:
        """Multiply-accumulates that residuals add, as a share of the decoder linears' own."""
        return sum(linear.added_macs for linear in self.linears) / sum(linear.macs for linear in self.linears)

    def macs_record(self) -> dict[str, Any]:
        """What of the decoder linears is pruned, as JSON values: `linear_macs` of nm_export.json."""
        return {
            "pruned_linears": len(self.pruned),
            "linears": len(self.linears),
            "pruned_share": self.pruned_share,
            "saved_share": self.saved_share,
            "added_share": self.added_share,
        }

    @property
    def input_groups(self) -> list[list[str]]:
        """Names of the linears whose input is pruned, those that read one input and keep the same of it together."""
        groups: dict[Any, list[str]] = defaultdict(list)
        for linear in self.pruned:
            assert linear.scheme is not None
            if linear.scheme.prune == "weights":
                continue
            groups[linear.input_id, *(getattr(linear.scheme, field) for field in _SELECTION)].append(linear.name)
        return list(groups.values())

    def with_patterns(self, patterns: Mapping[str, str | None]) -> "Plan":
        """Return the plan with other patterns for some linears; None leaves a linear dense."""

        def changed(linear: PlannedLinear) -> PlannedLinear:
            if linear.name not in patterns or linear.scheme is None:
                return linear
            pattern = patterns[linear.name]
            scheme = None if pattern is None else linear.scheme.model_copy(update={"pattern": pattern})
            return replace(linear, scheme=scheme)

        return Plan(tuple(changed(linear) for linear in self.linears))

    def to_json(self) -> list[list[Any]]:
        """Return the fields of every linear as JSON values."""
        return [
            [
                linear.name,
                linear.in_features,
                linear.out_features,
                scheme.model_dump() if scheme else None,
                linear.input_id,
            ]
            for linear in self.linears
            for scheme in (linear.scheme,)
        ]

    @classmethod
    def from_json(cls, values: list[list[Any]]) -> "Plan":
        """Make it again from what `to_json` returned."""
        return cls(
            tuple(
                PlannedLinear(name, inputs, outputs, Scheme(**scheme) if scheme else None, input_id)
                for name, inputs, outputs, scheme, input_id in values
            )
        )

    def sparsity(self) -> dict[str, Any]:
        """Return the `sparsity` section of `NMSparseConfig`."""
        schemes: dict[Scheme, list[str]] = defaultdict(list)
        for linear in self.pruned:
            assert linear.scheme is not None
            schemes[linear.scheme].append(linear.name)
        return {
            "version": SPARSITY_VERSION,
            "schemes": [{**scheme.model_dump(), "modules": names} for scheme, names in schemes.items()],
            "input_groups": self.input_groups,
            "rewritten": [f"{name}.weight" for s, names in schemes.items() if s.prune == "weights" for name in names],
        }


def make_plan(model: PreTrainedModel, recipe: Recipe | SparsitySection, *, with_onnx: bool | None = None) -> Plan:
    """Resolve a recipe, or its sparsity section, against a dense causal language model.

    The model may live in torch's FakeTensorMode.

    Args:
        model: the model.
        recipe: its sparsity section counts.
        with_onnx: whether an ONNX graph has to do what the plan says; None is what the recipe says; a
            section says nothing.

    Raises:
        UserError: the model sees later tokens, a wildcard matches nothing, a module cannot be pruned, `m` does not
            divide its input channels, the scheme of a linear needs to know one sequence from the next and its input
            does not tell, or the model holds an adapter.
    """
    _refuse_adapters(model)
    head = model.get_output_embeddings()
    linears = {n: mod for n, mod in model.named_modules() if isinstance(mod, nn.Linear) and mod is not head}
    others = _other_layers(model)
    _refuse(others, recipe.for_module)
    if not linears:
        raise UserError(f"{type(model).__name__} has no torch.nn.Linear in its layers, so there is nothing to prune.")
    unmatched = recipe.unmatched([*linears, *others, "lm_head"])
    if unmatched:
        known = ", ".join(sorted({f"*.{name.rsplit('.', 1)[-1]}" for name in linears}))
        raise UserError(f"{unmatched[0]} matches no linear layer of {type(model).__name__}; it has {known}.")
    check_causal(model, type(model).__name__)
    inputs = _inputs_of(model, linears)
    plan = Plan(
        tuple(
            PlannedLinear(name, linear.in_features, linear.out_features, recipe.for_module(name), inputs[name])
            for name, linear in linears.items()
        )
    )
    if not plan.pruned:
        raise UserError("sparsity.targets, ignore and overrides leave every layer dense; let them prune at least one.")
    for planned in plan.pruned:
        assert planned.scheme is not None
        try:
            group_size(planned.scheme.pattern, planned.in_features)
        except ValueError:
            m = planned.scheme.pattern.split(":")[1]
            raise UserError(
                f"{planned.name} has {planned.in_features} input channels (K), which M = {m} of the pattern "
                f"{planned.scheme.pattern} does not divide; choose another pattern or add the module to "
                "sparsity.ignore."
            ) from None
    schemes = {
        linear.name: linear.scheme for linear in plan.pruned if linear.scheme and linear.scheme.prune != "weights"
    }
    _refuse_scores_of_lists(model, linears, schemes)
    if with_onnx is None:
        with_onnx = isinstance(recipe, Recipe) and recipe.onnx.enabled
    if with_onnx:
        phases = {name: scheme.phase for name, scheme in schemes.items()}
        refuse_phases_of_lists(model, {name: linears[name] for name in phases}, phases)
    return plan


def _refuse_adapters(model: PreTrainedModel) -> None:
    adapted = next((name for name, module in model.named_modules() if hasattr(module, "base_layer")), None)
    if adapted is not None:
        raise UserError(
            f"The model holds an adapter ({adapted}) that is not merged into its weights; merge it first: "
            "peft.AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()."
        )


def _refuse_scores_of_lists(
    model: PreTrainedModel, linears: Mapping[str, nn.Linear], schemes: Mapping[str, Scheme]
) -> None:
    asked = {name: linears[name] for name, scheme in schemes.items() if scheme.score == "clact_noncausal"}
    for name, shape in _lists(model, asked).items():
        raise UserError(
            f"{name} reads {shape} for 2 sequences of 3 tokens: all tokens in one list, in which "
            "score: clact_noncausal cannot tell one sequence from the next; give it score: clact in "
            "sparsity.overrides, or add it to sparsity.ignore."
        )


def refuse_phases_of_lists(model: PreTrainedModel, linears: Mapping[str, nn.Linear], phases: Mapping[str, str]) -> None:
    """Refuse phases of linears that get the tokens of all sequences in one list: a graph sees the list only.

    Args:
        model: the model, dense or sparse.
        linears: its linears by name.
        phases: the phase of each.

    Raises:
        UserError: a phase other than `both` of such a linear.
    """
    asked = {name: linear for name, linear in linears.items() if phases[name] != "both"}
    for name, shape in _lists(model, asked).items():
        raise UserError(
            f"{name} reads {shape} for 2 sequences of 3 tokens: all tokens in one list, in which an ONNX graph cannot "
            f"tell what phase: {phases[name]} is; give it phase: both in sparsity.overrides, add it to "
            "sparsity.ignore, or set onnx.enabled to false."
        )


def _lists(model: PreTrainedModel, linears: Mapping[str, nn.Linear]) -> dict[str, list[int]]:
    """Shapes of the inputs of those linears that get the tokens of 2 sequences of 3 in one list, by name."""
    shapes: dict[str, list[int]] = {}
    if linears:
        with _inputs_noted(linears, lambda name, x: shapes.update({name: list(x.shape)})):
            _run(model, batch=2, tokens=3)
    return {name: shape for name, shape in shapes.items() if shape[:-1] != [2, 3]}


def _other_layers(model: PreTrainedModel) -> dict[str, str]:
    """Layers with weights that are no `torch.nn.Linear`: what each is, by name."""
    others = {}
    for name, module in model.named_modules():
        if type(module).__name__ == "Conv1D":
            others[name] = "a Conv1D, not a torch.nn.Linear"
        elif any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)):
            others[name] = f"{type(module).__name__}, which holds the weights of several experts in one tensor"
    return others


def _refuse(others: dict[str, str], scheme_of: Callable[[str], Scheme | None]) -> None:
    # A recipe that asks for a layer which we cannot prune must not quietly leave it dense.
    for name, kind in others.items():
        if scheme_of(name):
            parent, _, last = name.rpartition(".")
            wildcard = f"*.{last}" if parent else last
            raise UserError(
                f"{name} is {kind}, and cannot be pruned; add '{wildcard}' to sparsity.ignore to leave it dense."
            )


def _inputs_of(model: PreTrainedModel, linears: dict[str, nn.Linear]) -> dict[str, int]:
    """Number the tensors that the linears read in a forward pass of two tokens: equal numbers mean the same tensor."""
    seen: list[torch.Tensor] = []  # keeps every input alive, so that no id is used twice
    inputs: dict[str, int] = {}

    def note(name: str, x: torch.Tensor) -> None:
        for number, tensor in enumerate(seen):
            if tensor is x:
                inputs.setdefault(name, number)
                return
        seen.append(x)
        inputs.setdefault(name, len(seen) - 1)

    with _inputs_noted(linears, note):
        _run(model, batch=1, tokens=2)
    # a linear that two tokens do not reach (an expert, say) shares its input with nobody
    return {name: inputs.get(name, -1 - index) for index, name in enumerate(linears)}


@contextmanager
def _inputs_noted(linears: Mapping[str, nn.Linear], note: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Within the block, `note(name, input)` is called before each call of a linear."""
    hooks = [
        linear.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name, linear in linears.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _run(model: PreTrainedModel, batch: int, tokens: int) -> None:
    sparse: Any = model if hasattr(model, "nm_modules") else None
    densely = nullcontext() if sparse is None else sparse.dense()
    with torch.no_grad(), densely:
        ids = torch.zeros(batch, tokens, dtype=torch.long, device=model.device)
        model.base_model(input_ids=ids, use_cache=False)
