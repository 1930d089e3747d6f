"""A language model whose linears keep N of every M input channels and repair what was dropped.

This file is published with every model; it needs torch and transformers only. The arithmetic follows arXiv 2509.22166;
its exact rules (ties, NaN, precision of statistics) are the specification that the ONNX operator
`ai.nm_export::NMTopK` states a second and third time, as a function body and as a compiled kernel.
"""

import functools
import math
import shutil
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)

from .configuration_nm_sparse import SCHEME_DEFAULTS, NMSparseConfig
from .reference_nm_sparse import changed_tensors, hub_options, joined_checkpoint, sample, samples_of

SHIFT_MODES = {
    "none": 0,
    "static_scalar": 0,
    "static_channel": 0,
    "learned": 0,
    "dynamic_mean": 1,
    "dynamic_median": 2,
}
PHASES = {"both": 0, "prefill": 1, "decode": 2}
MAX_GROUP = 64
_WIDENED = 1 << 18  # elements of a weight that are float64 at a time
_COMPILED = (torch.float32, torch.float16, torch.bfloat16)
_UNSCORED = ("magnitude", "clact_noncausal")  # no vector is stored for them
_NEUTRAL = {"nm_score": 1.0, "nm_scale": 1.0}  # the other parameters change nothing as zeros


def group_size(pattern: str, channels: int) -> tuple[int, int]:
    """Return `(n, m)` of a pattern for a linear of `channels` inputs: keep n of every m neighbours.

    Args:
        pattern: "N:M", 1 <= N <= M <= 64, or "P%", which keeps that share of all channels of a token (at least one).
        channels: input channels of the linear.

    Raises:
        ValueError: no such pattern, or M does not divide the channels; the sentence has no subject.
    """
    if pattern.endswith("%"):
        share = float(pattern[:-1])
        if not 0 < share <= 100:
            raise ValueError(f"pattern {pattern} does not keep more than 0 % and at most 100 % of the channels.")
        return max(1, math.floor(channels * share / 100 + 0.5)), channels
    n, m = (int(part) for part in pattern.split(":"))
    if not 1 <= n <= m <= MAX_GROUP:
        raise ValueError(f"pattern {pattern} is not 1 <= n <= m <= {MAX_GROUP}.")
    if channels % m:
        raise ValueError(f"{channels} input channels cannot be split into groups of {m}.")
    return n, m


_plain = False

# Tokens of each sequence in the model's current call, for linears that get the tokens of all sequences in one list.
_sequence_length: ContextVar[int | None] = ContextVar("nm_sparse_sequence_length", default=None)


@contextmanager
def plain_torch() -> Iterator[None]:
    """Within the block, compute with torch alone, even where compiled operators do the same faster."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def _compiled(name: str, x: Tensor, *float32: Tensor | None) -> Any:
    # The package nm_export registers operators that do the same on the CPU, faster; without it there are none. Types
    # that they do not take are computed with torch alone.
    if _plain or x.device.type != "cpu" or x.dtype not in _COMPILED or torch.compiler.is_exporting():
        return None
    if any(tensor is not None and tensor.dtype != torch.float32 for tensor in float32):
        return None
    return getattr(torch.ops.nm_export, name, None)


def deal(channels: Tensor, m: int) -> Tensor:
    """Lay `[..., K]` out so that every `m` neighbours are a group `g, g + K/m, g + 2 K/m, ...` of strided grouping."""
    return channels.unflatten(-1, (m, -1)).transpose(-1, -2).flatten(-2)


def undeal(channels: Tensor, m: int) -> Tensor:
    """Undo `deal`."""
    return deal(channels, channels.shape[-1] // m)


def keep_mask(scores: Tensor, n: int, m: int, strided: bool = False) -> Tensor:
    """Choose the `n` best of every `m` neighbouring channels, or of every group of `m` strided ones.

    A NaN ranks above +inf, and of equal scores the lower channel wins: both are what a stable descending sort does.

    Args:
        scores: float32 `[..., K]`, not negative, `m` divides `K`.
        n: channels kept of each group.
        m: channels in a group.
        strided: whether a group holds the channels `g, g + K/m, g + 2 K/m, ...` instead of neighbours.

    Returns:
        bool `[..., K]`.
    """
    if strided:
        return undeal(keep_mask(deal(scores, m), n, m), m)
    compiled = _compiled("keep_mask", scores, scores)
    if compiled is not None:
        return compiled(scores, n, m)
    groups = scores.reshape(*scores.shape[:-1], scores.shape[-1] // m, m)
    best = groups.sort(dim=-1, descending=True, stable=True).indices[..., :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True).reshape(scores.shape)


def variance_ratio(z: Tensor, p: Tensor) -> Tensor:
    """Return `sqrt(Var(z) / Var(p))` per token (VAR of arXiv 2509.22166), 1 where a variance is 0 or not finite.

    Args:
        z: float32 `[..., K]`, shifted input.
        p: float32 `[..., K]`, what was kept of it.

    Returns:
        float32 `[..., 1]`, computed in float64 in two passes and rounded once.
    """
    var_z, var_p = _variance(z), _variance(p)
    usable = var_z.isfinite() & var_p.isfinite() & (var_z > 0) & (var_p > 0)
    # the inner where keeps the unused branch, and so its gradient, away from 0 / 0
    ratio = torch.where(usable, var_z, 1.0) / torch.where(usable, var_p, 1.0)
    return ratio.sqrt().float()


def _variance(v: Tensor) -> Tensor:
    v = v.double()
    return (v - v.mean(dim=-1, keepdim=True)).square().mean(dim=-1, keepdim=True)


def nm_topk(
    x: Tensor,
    score: Tensor | None,
    shift: Tensor | None,
    *,
    n: int,
    m: int,
    shift_mode: int = 0,
    variance_correction: bool = False,
    phase: int = 0,
    strided: bool = False,
    is_decode: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Prune a linear's input: `values` and `token_shift` of the operator `ai.nm_export::NMTopK`.

    Args:
        x: `[..., K]`, float32, float16 or bfloat16, or float64, which is rounded to float32. Tokens are treated one by
            one.
        score: float32 `[K]`, positive importance of each channel; None means ones.
        shift: float32 `[K]` or `[1]`, static shift; None means zeros; ignored when the shift is dynamic.
        n: channels kept of each group.
        m: channels in a group, a divisor of `K`.
        shift_mode: 0 static, 1 the token's mean, 2 the token's lower median.
        variance_correction: whether to scale what is kept to the variance of the whole.
        phase: 0 prunes every call, 1 only calls with several tokens per sequence, 2 only calls with one.
        strided: whether a group holds the channels `g, g + K/m, g + 2 K/m, ...` instead of neighbours.
        is_decode: whether the call has one token per sequence; None is what the shape of `x` says.

    Returns:
        The corrected kept values `[..., K]` in the dtype of `x`; the dynamic shift, float32 `[..., 1]`, 0 when static.

    Raises:
        ValueError: `m` does not divide `K`.
    """
    channels = x.shape[-1]
    if channels == 0 or channels % m:
        raise ValueError(f"{n}:{m} sparsity needs a number of input channels that {m} divides, not {channels}.")
    if strided:
        score, shift = (v if v is None or v.numel() == 1 else deal(v, m) for v in (score, shift))
        values, token_shift = nm_topk(
            deal(x, m),
            score,
            shift,
            n=n,
            m=m,
            shift_mode=shift_mode,
            variance_correction=variance_correction,
            phase=phase,
            is_decode=is_decode,
        )
        return undeal(values, m), token_shift
    if is_decode is None:
        is_decode = x.dim() < 2 or x.shape[-2] == 1
    is_pruned = not phase or is_decode == (phase == PHASES["decode"])
    compiled = _compiled("nm_topk", x, score, shift)
    if compiled is not None and not (torch.is_grad_enabled() and any(_has_grad(t) for t in (x, shift))):
        return compiled(x, score, shift, n, m, shift_mode, variance_correction, is_pruned)
    z = x.float()
    token_shift = z.new_zeros(*z.shape[:-1], 1)
    if shift_mode == SHIFT_MODES["dynamic_mean"]:
        token_shift = (z.double().sum(dim=-1, keepdim=True) / channels).float()
    elif shift_mode == SHIFT_MODES["dynamic_median"]:
        token_shift = z.median(dim=-1, keepdim=True).values
    if shift_mode:
        z = z - token_shift
    elif shift is not None:
        z = z - shift

    if not is_pruned:
        return z.to(x.dtype), token_shift
    with torch.no_grad():  # a choice has no gradient: the kept set is a constant of the backward pass
        magnitude = z.abs()
        keep = keep_mask(magnitude if score is None else magnitude * score, n, m)
    values = torch.where(keep, z, 0.0)  # not z * keep: inf * 0 is NaN
    if variance_correction:
        values = variance_ratio(z, values) * values
    return values.to(x.dtype), token_shift


def linear(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `values W^T + b` `[..., O]` of pruned values, where zeros may save time.

    Args:
        values: `[..., K]`.
        weight: `[O, K]`. Zeros save something only if the weights of each input channel are stored together.
        bias: `[O]` or None.
    """
    compiled = _compiled("sparse_linear", values) if weight.stride(0) == 1 else None
    differentiable = torch.is_grad_enabled() and any(_has_grad(t) for t in (values, weight, bias))
    types = {tensor.dtype for tensor in (values, weight, bias) if tensor is not None}
    if compiled is None or differentiable or len(types) > 1:
        return F.linear(values, weight, bias)
    return compiled(values, weight, bias)


def _has_grad(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _agree(stored: Tensor, exact: Tensor) -> Tensor:
    """Where float32 numbers are `exact` ones, float64, but for their rounding and another order of summation."""
    return (stored - exact).abs() <= 2.0**-24 * exact.abs() + 1e-12 * exact.abs().max()


class NMSparseLinear(nn.Linear):
    """A linear that prunes its input. It takes over the parameters of the linear it replaces, without a copy.

    With `values` and the shift `e` of `nm_topk`, and `d`, what was dropped (`x - e` where `values` is 0, else 0):

        y = (values W^T + e W^T) * scale + b + b' + (d B^T) A^T

    Buffers (float32 whatever the model's dtype, saved, None where the scheme needs none): `nm_score` `[K]`; `nm_shift`
    `[K]` or `[1]`, static; `nm_offset` `[O]`: `W e` of a static shift, `W 1` of a dynamic one; `nm_scale` `[O]`;
    `nm_bias` `[O]`: b'; `nm_residual_in` `[r, K]`: B; `nm_residual_out` `[O, r]`: A.

    `nm_offset` follows the weight and the shift, whoever changes them. On the CPU it is used while it is known to be
    theirs, and computed anew where they have changed: PyTorch counts changes in place, and those that go past the count
    (`weight.data`) show in some elements of the weight, if they are not of a few numbers. Where that cannot be seen at
    no cost (gradients, other devices, compiled code, tensors of other libraries), `(values + e) W^T` is computed
    instead. Saving looks at every number. Scores are parameters: they stay what calibration made them.

    Attributes:
        enabled: False computes the dense linear.
    """

    nm_score: Tensor | None
    nm_shift: Tensor | None
    nm_offset: Tensor | None
    nm_scale: Tensor | None
    nm_bias: Tensor | None
    nm_residual_in: Tensor | None
    nm_residual_out: Tensor | None
    _offset_of: tuple[Any, ...] | None = None  # the weight and the shift that nm_offset belongs to, if that is known
    _buffer_names = (
        "nm_score",
        "nm_shift",
        "nm_offset",
        "nm_scale",
        "nm_bias",
        "nm_residual_in",
        "nm_residual_out",
    )

    def __init__(self, linear: nn.Linear, scheme: dict[str, Any], name: str = "linear") -> None:
        """Replace `linear`; `scheme` is an entry of `NMSparseConfig.sparsity["schemes"]`, `name` is for messages.

        Raises:
            ValueError: the pattern is not 1 <= n <= m <= 64, or m does not divide the linear's inputs.
        """
        nn.Module.__init__(self)
        self.name = name
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        try:
            self.n, self.m = group_size(scheme["pattern"], self.in_features)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        self.score, self.shift, self.phase = scheme["score"], scheme["shift"], scheme["phase"]
        self.strided = scheme["grouping"] == "strided"
        self.variance_correction = bool(scheme["variance_correction"])
        self.enabled = True
        K, O, rank = self.in_features, self.out_features, scheme["residual_rank"]  # noqa: E741

        def register(name: str, needed: bool, *shape: int) -> None:
            neutral = _NEUTRAL.get(name, 0.0)
            full = torch.full(shape, neutral, dtype=torch.float32, device=linear.weight.device) if needed else None
            self.register_buffer(name, full)

        register("nm_score", self.score not in _UNSCORED, K)
        scalar = self.shift == "static_scalar"
        register("nm_shift", scalar or self.shift in ("static_channel", "learned"), 1 if scalar else K)
        register("nm_offset", self.shift != "none", O)
        register("nm_scale", scheme["output_scale"], O)
        register("nm_bias", scheme["output_bias"] != "none", O)
        register("nm_residual_in", rank > 0, rank, K)
        register("nm_residual_out", rank > 0, O, rank)

    def _apply(self, fn: Any, recurse: bool = True) -> "NMSparseLinear":
        # model.to(bfloat16) and model.half() move the sparsity parameters but leave them float32: rounded scores
        # would keep other channels than every other backend
        before = {name: getattr(self, name) for name in self._buffer_names}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = getattr(self, name)
            if new is not None and new.dtype != torch.float32:
                setattr(self, name, old.to(new.device))
        return self

    def update_offset(self) -> None:
        """Compute `nm_offset` from the weight and the shift, in float64; numbers that are right keep their bits.

        Nothing is done where the weight is elsewhere (meta tensors, shards).
        """
        if self.nm_offset is not None and self._has_weight():
            with torch.inference_mode(False), torch.no_grad():
                exact = self._exact_offset()
                right = _agree(self.nm_offset, exact)
                if not bool(right.all()):
                    self.nm_offset = torch.where(right, self.nm_offset, exact.float())
            self.keep_offset()

    def keep_offset(self) -> None:
        """Take `nm_offset` as it is for that of weight and shift as they are, until one of the three changes."""
        self._offset_of = self._counts(), [sample(t.detach()).clone() for t in self._sources()]

    def _has_weight(self) -> bool:
        # neither a meta tensor nor a shard, nor one of a library that stores numbers in its own way
        weight = self._parameters.get("weight")
        return type(weight) is nn.Parameter and not weight.is_meta and weight.dim() == 2

    def _sources(self) -> list[Tensor]:
        """What `nm_offset` is computed from; not by attribute, which takes a microsecond each."""
        return [t for t in (self._parameters["weight"], self._buffers["nm_shift"]) if t is not None]

    def _counts(self) -> list[Any]:
        # where the tensors are, and how often PyTorch has counted a change of them
        tensors = (*self._sources(), self._buffers["nm_offset"])
        return [(t.data_ptr(), None if t.is_inference() else t._version) for t in tensors if t is not None]

    def _exact_offset(self, step: int = 1) -> Tensor:
        e = torch.ones(1, device=self.weight.device) if self.nm_shift is None else self.nm_shift.detach()
        e = e.double().expand(self.in_features)
        rows = max(1, _WIDENED // self.in_features)
        return torch.cat([part.double() @ e for part in self.weight.detach()[::step].split(rows)])

    def _is_current(self) -> bool:
        """Whether `nm_offset` is known to be that of weight and shift."""
        if (
            self._offset_of is None
        ):  # new, or loaded: of these weights or not, and a damaged file is not mended silently
            if right := bool(self._right_rows().any()):
                self.keep_offset()
            return right
        counts, samples = self._offset_of
        if not all(map(torch.equal, map(sample, self._sources()), samples)):
            return False
        # weights that Accelerate fetches are other tensors in every call
        return bool(counts == self._counts()) or (hasattr(self, "_hf_hook") and bool(self._right_rows().all()))

    def _right_rows(self) -> Tensor:
        """Which of some rows of `nm_offset` are those of weight and shift, bool."""
        assert self.nm_offset is not None
        step = max(1, self.out_features // 4)
        return _agree(self.nm_offset.detach()[::step], self._exact_offset(step))

    def _offset_for(self, values: Tensor) -> Tensor | None:
        """`nm_offset`, up to date; None where there is none, or where the shift has to go through the product."""
        if self._buffers["nm_offset"] is None or torch.compiler.is_compiling() or not values.is_cpu:
            return None
        if type(values) is not Tensor or not self._has_weight():
            return None
        if torch.is_grad_enabled() and any(map(_has_grad, (values, *self._sources()))):
            return None
        if not self._is_current():
            self.update_offset()
        return self._buffers["nm_offset"]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.nm_offset is not None and self._has_weight() and not self._is_current():
            self.update_offset()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def prune(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the corrected kept values of `x` `[..., K]` and its dynamic shift `[..., 1]`; see `nm_topk`.

        Raises:
            ValueError: `x` is `[tokens, K]`, and the scheme needs to know which tokens belong to one sequence, or how
                many, which only the model knows.
        """
        score, is_decode = self.nm_score, None
        noncausal = self.score == "clact_noncausal"
        if x.dim() == 2 and self.phase != "both":
            length = _sequence_length.get()
            is_decode = None if length is None else length == 1
        if x.dim() == 2 and (noncausal or (self.phase != "both" and is_decode is None)):
            what = f"score: {self.score}" if noncausal else f"phase: {self.phase}"
            raise ValueError(
                f"{self.name} reads {list(x.shape)}, the tokens of all sequences in one list, so that {what} cannot "
                "tell one sequence from the next; use another one for this linear, or leave it dense."
            )
        if noncausal:  # as published: every token of the sequence has a say, later ones too
            rows = x.reshape(-1, *x.shape[-2:])
            if len(rows) > 1:
                parts = zip(*(self.prune(row[None]) for row in rows), strict=True)
                values, shifts = (torch.cat(part).reshape(*x.shape[:-1], -1) for part in parts)
                return values, shifts
            score = x.detach().float().reshape(-1, self.in_features).norm(dim=0)
        return nm_topk(
            x,
            score,
            self.nm_shift,
            n=self.n,
            m=self.m,
            shift_mode=SHIFT_MODES[self.shift],
            variance_correction=self.variance_correction,
            phase=PHASES[self.phase],
            strided=self.strided,
            is_decode=is_decode,
        )

    def product(self, values: Tensor, token_shift: Tensor) -> Tensor:
        """Return `(values W^T + e W^T) * scale + b + b'` `[..., O]`."""
        scale, offset = self.nm_scale, self._offset_for(values)
        if offset is None and self.nm_offset is not None:
            shift = token_shift if self.nm_shift is None else self.nm_shift
            values = (values.float() + shift).to(values.dtype)
        y = linear(values, self.weight, self.bias if scale is None else None)
        if offset is not None:
            y = (y.float() + (token_shift * offset if SHIFT_MODES[self.shift] else offset)).to(y.dtype)
        if scale is not None:
            y = (y.float() * scale).to(y.dtype)
            y = y if self.bias is None else y + self.bias
        return y if self.nm_bias is None else (y.float() + self.nm_bias).to(y.dtype)

    def residual(self, x: Tensor, values: Tensor, token_shift: Tensor) -> Tensor:
        """Return `(d B^T) A^T`, float32 `[..., O]`: a low-rank product with what was dropped (R-Sparse, 2504.19449)."""
        assert self.nm_residual_in is not None
        assert self.nm_residual_out is not None
        shift = token_shift if self.nm_shift is None else self.nm_shift
        dropped = torch.where(values == 0, x.float() - shift, 0.0)
        return F.linear(F.linear(dropped, self.nm_residual_in), self.nm_residual_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., K]` to `[..., O]`.

        Raises:
            ValueError: see `prune`; or a gradient is asked for that does not exist.
        """
        if torch.is_grad_enabled() and (_has_grad(self.nm_score) or _has_grad(self.nm_offset)):
            which = "nm_score" if _has_grad(self.nm_score) else "nm_offset"
            raise ValueError(
                f"{self.name}.{which} requires a gradient, and has none: the choice of channels is constant in the "
                "backward pass, and nm_offset is computed from weight and shift. Train those, the scale, the bias or "
                "the residual; nm_export.trainable makes them leaves."
            )
        if not self.enabled:
            return F.linear(x, self.weight, self.bias)
        values, token_shift = self.prune(x)
        y = self.product(values, token_shift)
        if self.nm_residual_in is None:
            return y
        return (y.float() + self.residual(x, values, token_shift)).to(y.dtype)

    def extra_repr(self) -> str:
        """Describe the linear, its pattern and what differs from the defaults in `print(model)`."""
        said = [super().extra_repr(), f"{self.n}:{self.m}"]
        words = {"score": self.score, "shift": self.shift, "phase": self.phase}
        said += [f"{key}={word}" for key, word in words.items() if word != SCHEME_DEFAULTS[key]]
        rank = 0 if self.nm_residual_in is None else len(self.nm_residual_in)
        flags = {
            "grouping=strided": self.strided,
            "variance_correction=True": self.variance_correction,
            "output_scale=True": self.nm_scale is not None,
            "output_bias": self.nm_bias is not None,
            f"residual_rank={rank}": rank,
            "enabled=False": not self.enabled,
        }
        return ", ".join([*said, *(text for text, holds in flags.items() if holds)])


class _NMSparse(PreTrainedModel):
    """What the sparse model classes add to the base model's own class; see `NMSparseForCausalLM`."""

    config_class = NMSparseConfig
    _auto: Any  # AutoModel or AutoModelForCausalLM: finds the base model's class
    _base_class: type[PreTrainedModel] | None = None  # set on bound classes
    # of linears whose weights are pruned: their dense weights, or None where they are gone
    dense_weights: dict[str, Tensor | None]
    _pruned: tuple[Any, ...] | list[tuple[nn.Module, str, nn.Module]] = ()  # parent, name and module, as last checked

    def __new__(cls, config: NMSparseConfig | None = None, *args: Any, **kwargs: Any) -> Any:
        if cls._base_class is None and config is not None:
            cls = cls.bound(type(config.base_config))
        return object.__new__(cls)

    @classmethod
    def bound(cls, base_config_class: type) -> Any:
        """Return the subclass of (this class, the base model's class) for a base configuration class.

        It carries this class's own name, because `architectures` and `auto_map` look that name up in this file.

        Raises:
            ValueError: transformers has no such model class for that configuration.
        """
        base_class = cls._auto._model_mapping.get(base_config_class, None)
        if base_class is None or isinstance(base_class, tuple):
            raise ValueError(f"{base_config_class.__name__} has no {cls._auto.__name__} class in transformers.")
        bind: Any = _bind
        return bind(cls, base_class)

    def __init__(self, config: NMSparseConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config.base_config, *args, **kwargs)
        self._become_sparse(config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does; weights that the repository leaves to its base model's are fetched from there.

        Args:
            pretrained_model_name_or_path: folder or repository.
            *args: as transformers has them.
            **kwargs: as transformers has them, and `base_folder`, a folder with the base model's weights, for those
                who have it elsewhere than `config.json` says.

        Raises:
            OSError: files cannot be had.
            ValueError: the base model's weights are not those that this model was made from, or something (a quantizer,
                say) has replaced the linears that prune by others.
        """
        place, config = pretrained_model_name_or_path, kwargs.get("config")
        if isinstance(config, PreTrainedConfig):
            base_weights = getattr(config, "base_weights", None)
        elif place is None:
            base_weights = None
        else:
            fields, _ = NMSparseConfig.get_config_dict(config or place, **hub_options(kwargs))
            base_weights = fields.get("base_weights")
        if base_weights is None:
            loaded = super().from_pretrained(place, *args, **kwargs)
            (loaded[0] if isinstance(loaded, tuple) else loaded)._is_loaded()
            return loaded
        with joined_checkpoint(place, base_weights, kwargs) as folder:
            local = {name: kwargs[name] for name in kwargs if name not in ("revision", "subfolder", "base_folder")}
            loaded = super().from_pretrained(folder, *args, **local)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if "disk" in (getattr(model, "hf_device_map", None) or {}).values():
            weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)  # Accelerate goes on reading from it
        else:
            shutil.rmtree(folder, ignore_errors=True)
        model.config.base_weights = None  # the model is whole now, and is saved as a whole
        model.name_or_path = model.config.name_or_path = str(place)
        model._is_loaded()
        return loaded

    def _is_loaded(self) -> None:
        """Take the weights for those that the configuration describes."""
        self._check_linears()
        self._base_samples = samples_of(self)
        schemes = self.config.sparsity["schemes"]
        zeroed = [name for scheme in schemes if scheme["prune"] == "weights" for name in scheme["modules"]]
        self.dense_weights = dict.fromkeys(zeroed)

    @classmethod
    def from_dense(cls, model: PreTrainedModel, sparsity: dict[str, Any]) -> Any:
        """Turn a dense transformers model into a sparse one, in place and without copying a weight.

        The new parameters are neutral (scores 1, shifts 0) until calibration fills them.

        Args:
            model: a transformers model of the kind that this class stands for.
            sparsity: see `NMSparseConfig`.

        Raises:
            ValueError: a module of the scheme is missing, is no plain linear, does not fit the pattern, or is kept on
                another device or on disk by Accelerate; or the model holds an adapter.
        """
        if adapted := next((name for name, module in model.named_modules() if hasattr(module, "base_layer")), None):
            raise ValueError(f"{adapted} holds an adapter that is not merged; merge it (merge_and_unload) before that.")
        bound = cls.bound(type(model.config))
        if type(model) is not bound._base_class:
            raise ValueError(f"{type(model).__name__} is not {bound._base_class.__name__}, the class of its config.")
        replacements = _sparse_linears(model, sparsity)
        model.config.architectures = [type(model).__name__]
        model.__class__ = bound
        sparse: Any = model
        sparse._become_sparse(NMSparseConfig(base_config=model.config, sparsity=sparsity), replacements)
        sparse._base_samples = samples_of(sparse)
        return sparse

    def _become_sparse(self, config: NMSparseConfig, replacements: dict[str, NMSparseLinear] | None = None) -> None:
        for name, linear in (replacements or _sparse_linears(self, config.sparsity)).items():
            self.set_submodule(name, linear)
        self.config = config
        self.dense_weights, self._pruned = {}, ()
        # the base class has turned this class attribute into a set of its own by now
        self._keep_in_fp32_modules_strict = {*(self._keep_in_fp32_modules_strict or ()), *NMSparseLinear._buffer_names}

    def initialize_weights(self) -> None:
        """Initialize what a checkpoint lacks; sparsity parameters as neutral ones."""
        super().initialize_weights()
        for module in self.nm_modules().values():
            for name in NMSparseLinear._buffer_names:
                if getattr(module, name) is not None:
                    initialization.constant_(getattr(module, name), _NEUTRAL.get(name, 0.0))

    def to_dense(self) -> Any:
        """Turn the model back into the dense one, in place and without copying a weight; returns it.

        Weights that `prune: weights` has zeroed get their numbers back, of which `nm_export.sparsify` keeps copies.

        Raises:
            ValueError: there is no copy.
        """
        if lost := [name for name, weight in self.dense_weights.items() if weight is None]:
            raise ValueError(
                f"The dense weights of {lost[0]} ({len(lost)} linears) are gone: prune: weights has zeroed a part of "
                "them, and no copy was kept; load the base model instead."
            )
        for name, weight in self.dense_weights.items():
            with torch.no_grad():
                self.get_parameter(f"{name}.weight").copy_(weight)  # type: ignore[arg-type]  # none is None
        for attribute in ("dense_weights", "_base_samples", "_pruned"):
            self.__dict__.pop(attribute, None)
        for name, module in self.nm_modules().items():
            with torch.device("meta"):
                linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight, linear.bias = module.weight, module.bias
            self.set_submodule(name, linear.train(module.training))
        model: Any = self
        model.config, model.__class__ = self.config.base_config, self._base_class
        return model

    def __reduce_ex__(self, protocol: Any) -> Any:
        # bound classes are made at run time: pickle and deepcopy need a function that makes them again
        unbound = next(c for c in type(self).__mro__ if c.__dict__.get("_auto") is not None)
        return _rebuild, (unbound, type(self)._base_class), {k: v for k, v in self.__dict__.items() if k != "_pruned"}

    def _check_linears(self) -> None:
        """Raise a ValueError if others have taken the places of linears that prune; wrappers of adapters may."""
        if self._pruned and all(parent._modules.get(name) is module for parent, name, module in self._pruned):
            return
        found: list[tuple[nn.Module, str, nn.Module]] = []
        others: list[str] = []
        for _, full_name, path in _places(self, self.config.sparsity):
            parent_path, _, name = path.rpartition(".")
            parent = self.get_submodule(parent_path)
            module = inner = getattr(parent, name)
            while isinstance(inner, nn.Module) and not isinstance(inner, NMSparseLinear):
                inner = getattr(inner, "base_layer", None)
            found.append((parent, name, module))
            if inner is None:
                others.append(f"{full_name} is a {type(module).__name__}")
        if others:
            raise ValueError(
                f"{others[0]}, and {len(others)} of {len(found)} linears that should prune do not: something (a "
                "quantizer?) has put others in their places. Load the model without it, or make it leave them out "
                "(modules_to_not_convert, llm_int8_skip_modules); or call to_dense() first, if nothing is to be pruned."
            )
        self._pruned = found

    def _check_call(self, ids: Tensor | None, mask: Any) -> None:
        """Raise a ValueError where this call would not prune as the configuration says."""
        self._check_linears()
        if (
            isinstance(mask, Tensor)
            and mask.dim() == 2
            and ids is not None
            and any(scheme["score"] == "clact_noncausal" for scheme in self.config.sparsity["schemes"])
            and not bool(mask[:, -ids.shape[1] :].all())
        ):
            raise ValueError(
                "score: clact_noncausal looks at every token of a sequence, and padding has a say; give it "
                "sequences of one length, without padding."
            )

    def nm_modules(self) -> dict[str, NMSparseLinear]:
        """Return the pruned linears by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, NMSparseLinear)}

    def set_sparsity(self, enabled: bool) -> None:
        """Switch pruning on or off; off is the base model, bit for bit, unless its weights were rewritten."""
        for module in self.nm_modules().values():
            module.enabled = enabled

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Compute densely within a `with` block."""
        before = {module: module.enabled for module in self.nm_modules().values()}
        self.set_sparsity(False)
        try:
            yield
        finally:
            for module, enabled in before.items():
                module.enabled = enabled

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, with the files of code that reload the model.

        Offsets are those of the weights as they are now, and `config.sparsity["rewritten"]` names the tensors that are
        no longer the base model's, whoever changed them since the model was loaded or made: of each matrix some numbers
        are compared (64 spread over it, and 1,024 rows), so that changing a few numbers of one may go unnoticed.
        """
        # Names of the model in memory: for some base models transformers writes older names, which it would translate
        # back for their own model type only.
        kwargs.setdefault("save_original_format", False)
        for module in self.nm_modules().values():
            module.update_offset()
        self._note_rewritten(kwargs.get("state_dict"))
        head, embedding = self.get_output_embeddings(), self.get_input_embeddings()
        if head is not None:  # parameters may have been joined or parted since; whoever reloads goes by this flag
            self.config.tie_word_embeddings = head.weight is embedding.weight
        super().save_pretrained(save_directory, *args, **kwargs)
        self.copy_code(save_directory)

    def _note_rewritten(self, tensors: Mapping[str, Tensor] | None) -> None:
        sparsity = self.config.sparsity
        tensors = tensors or dict(self.named_parameters(remove_duplicate=False))
        changed = changed_tensors(self.__dict__.get("_base_samples", {}), tensors)
        if new := changed - set(sparsity["rewritten"]):
            sparsity["rewritten"] = sorted(new.union(sparsity["rewritten"]))

    @staticmethod
    def copy_code(folder: Any) -> None:
        """Copy the files of code that reload the model."""
        here = Path(__file__).parent
        for name in ("configuration_nm_sparse.py", "modeling_nm_sparse.py", "reference_nm_sparse.py"):
            target = Path(folder) / name
            if target.exists() and target.samefile(here / name):
                continue
            shutil.copyfile(here / name, target)


def _places(model: nn.Module, sparsity: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Scheme, name and path of each linear whose input is pruned."""
    # A headless model (AutoModel) holds the same modules without the prefix that the head's class puts before them.
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    headless = not hasattr(model, prefix[:-1])
    for scheme in sparsity["schemes"]:
        if scheme["prune"] == "weights":  # zeros in a dense weight: the linear stays as it is
            continue
        for name in scheme["modules"]:
            yield scheme, name, name.removeprefix(prefix) if headless else name


def _sparse_linears(model: nn.Module, sparsity: dict[str, Any]) -> dict[str, NMSparseLinear]:
    modules = dict(model.named_modules())
    replacements = {}
    for scheme, full_name, name in _places(model, sparsity):
        if not isinstance(modules.get(name), nn.Linear):
            found = type(modules[name]).__name__ if name in modules else "no module"
            raise ValueError(f"config.json: sparsity names {full_name} as a linear; the model has {found} there.")
        if hasattr(modules[name], "_hf_hook"):
            raise ValueError(f"{full_name} is offloaded by Accelerate; make the model sparse before that.")
        replacements[name] = NMSparseLinear(modules[name], scheme, full_name)
    return replacements


@functools.cache
def _bind(sparse_class: Any, base_class: Any) -> Any:
    @functools.wraps(base_class.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return base_class.forward(self, *args, **kwargs)
        ids, mask = (*args, None, None)[:2]
        ids = next((kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None), ids)
        self._check_call(ids, kwargs.get("attention_mask", mask))
        before = _sequence_length.set(None if ids is None else ids.shape[1])
        try:
            return base_class.forward(self, *args, **kwargs)
        finally:
            _sequence_length.reset(before)

    namespace = {
        "__module__": sparse_class.__module__,
        "__doc__": sparse_class.__doc__,
        "_base_class": base_class,
        "forward": forward,
    }
    return type(sparse_class.__name__, (sparse_class, base_class), namespace)


def _rebuild(sparse_class: Any, base_class: Any) -> Any:
    cls = _bind(sparse_class, base_class)
    return cls.__new__(cls)


class NMSparseModel(_NMSparse):
    """A decoder without a head whose linears prune their inputs; see `NMSparseForCausalLM`."""

    _auto = AutoModel


class NMSparseForCausalLM(_NMSparse, GenerationMixin):
    """A causal language model of any architecture of transformers whose linears prune their inputs.

    An instance is at the same time an instance of the base model's class (`isinstance(model, LlamaForCausalLM)`): its
    module names and state-dict keys are the base model's plus `nm_*` buffers.
    """

    _auto = AutoModelForCausalLM
