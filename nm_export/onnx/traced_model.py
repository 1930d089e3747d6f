"""A causal language model as torch.export traces it: one call for prefill and decode, linears as products `x W`.

    logits, present = model(input_ids, attention_mask, past)          W: K x O, a stand-in without memory

The numbers of the linears are not needed for tracing. Each weight is a parameter of its own that the exported graph
names, so that whoever writes the graph puts the weights in, in the layout that it wants.
"""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from nm_export.errors import UserError
from nm_export.modeling.modeling_nm_sparse import NMSparseLinear
from nm_export.onnx.base_graph import architecture, names_of, shallow_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHT = "nm_product_weight"
"""Name of the stand-in's parameter in the module that takes a linear's place."""


class TracedModel(nn.Module):
    """The dense twin of a model; the model itself is left as it is.

    Attributes:
        architecture: name of the model's class.
        linears: the linears that were replaced, by name.
        tied: names of output layer and embedding where their weights are one, else None.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        """Copy the modules of `model`, and none of its matrices that are float32."""
        super().__init__()
        self.architecture = architecture(model)
        self.linears = _linears(model)
        self.tied = _tied(model)
        copy = shallow_copy(model).eval()
        for index, (name, linear) in enumerate(self.linears.items()):
            copy.set_submodule(name, _Product(linear, index))
        # nothing in it prunes any more, which the class of sparse models would refuse
        copy.__class__ = getattr(copy, "_base_class", None) or type(copy)
        _widen(copy)
        self.model = copy
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute logits and extend the cache.

        Args:
            input_ids: int64 `[batch, tokens]`.
            attention_mask: int64 `[batch, cached + tokens]`, 0 for padding, wherever it stands.
            past: keys and values of every layer in turn, `[batch, heads, cached, head_size]`.

        Returns:
            Logits `[batch, tokens, vocabulary]`; keys and values of all `cached + tokens`.
        """
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(keys, values, layer)
        logits, cache = self.run(input_ids, attention_mask, cache)
        return logits, [part for layer in cache.layers for part in (layer.keys, layer.values)]

    def run(self, input_ids: Tensor, attention_mask: Tensor, cache: DynamicCache) -> tuple[Tensor, Any]:
        """As `forward`, with the cache of transformers; it is extended in place."""
        positions = {}
        if self._takes_positions:
            tokens = (attention_mask.cumsum(-1) - 1).clamp(min=0)
            positions["position_ids"] = tokens[:, -input_ids.shape[1] :]
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **positions
        )
        return output.logits, output.past_key_values

    def empty_cache(self, batch: int, length: int) -> list[Tensor]:
        """Zeros in the shape of a cache of `length` tokens, as `forward` takes it.

        Raises:
            UserError: the model keeps something else than keys and values of every token.
        """
        ids = torch.ones(1, 2, dtype=torch.long)
        cache = DynamicCache()
        try:
            with torch.no_grad():
                _, filled = self.run(ids, torch.ones_like(ids), cache)
        except Exception as error:  # what models of other caches raise is of many types
            raise UserError(
                f"The exporter of transformers: {self.architecture} does not run with a cache of keys and values of "
                f"every token ({type(error).__name__}: {error})."
            ) from error
        layers = getattr(filled, "layers", ())
        plain = all(type(layer) is DynamicLayer and getattr(layer, "keys", None) is not None for layer in layers)
        if filled is not cache or not layers or not plain:
            raise UserError(
                f"The exporter of transformers: {self.architecture} keeps something else than the keys and values of "
                "every token."
            )
        parts = [part for layer in cache.layers for part in (layer.keys, layer.values)]
        return [torch.zeros(batch, part.shape[1], length, part.shape[3]) for part in parts]


class _Product(nn.Module):
    """A linear as `x W + b`, its weight a stand-in `K x O` whose elements are one number in memory.

    Two dimensions become three, `[1, tokens, K]`: graphs are probed with batches.
    """

    def __init__(self, linear: nn.Linear, index: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # for models that look at it; numbers in half precision would draw float32 inputs down with them
        self.weight = linear.weight if linear.weight.dtype == torch.float32 else _stand_in(linear.weight.shape, 0)
        self.bias = linear.bias
        # each has a number of its own, so that no optimizer takes two of them for one
        self.register_parameter(WEIGHT, _stand_in((linear.in_features, linear.out_features), index))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.dim() == 2
        y = torch.matmul(x[None] if flat else x, getattr(self, WEIGHT))
        y = y if self.bias is None else y + self.bias  # right after the product, where it is looked for
        return y[0] if flat else y


def _widen(model: nn.Module) -> None:
    """Make every parameter float32; what is shared stays shared."""
    wide: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point() and parameter.dtype != torch.float32:
                if id(parameter) not in wide:
                    wide[id(parameter)] = nn.Parameter(parameter.float(), requires_grad=False)
                module._parameters[name] = wide[id(parameter)]


def _stand_in(shape: Any, value: float) -> nn.Parameter:
    return nn.Parameter(torch.full((), float(value)).expand(shape), requires_grad=False)


def _tied(model: "PreTrainedModel") -> tuple[str, str] | None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not isinstance(head, nn.Linear) or not isinstance(embedding, nn.Embedding):
        return None
    if head.weight is not embedding.weight:
        return None
    first, second = names_of(model, head, embedding)
    return first, second


def _linears(model: nn.Module) -> Mapping[str, nn.Linear]:
    """Every linear whose arithmetic is that of nn.Linear once nothing is pruned."""
    return {name: module for name, module in model.named_modules() if type(module) in (nn.Linear, NMSparseLinear)}
