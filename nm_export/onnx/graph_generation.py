"""`generate` of transformers over a graph: prompts padded on either side; what needs PyTorch is refused."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from nm_export.onnx.cache import ORTCache
from nm_export.onnx.call_inputs import InputError, same_positions, token_ids, token_mask

_NEEDS_TORCH: dict[str, Callable[[Any], bool]] = {
    "penalty_alpha": bool,  # contrastive search: hidden states
    "dola_layers": lambda value: value is not None,  # logits of earlier layers
    "assistant_early_exit": lambda value: value is not None,  # a model that ends earlier
    "use_mtp": bool,  # heads for several tokens
    "speculation_type": lambda value: value == "dflash",
    "output_hidden_states": bool,
    "output_attentions": bool,
    "cache_implementation": lambda value: value in ("quantized", "paged"),
}
"""Options of `generate`, and the values of them that need a PyTorch model."""


class GraphGeneration(GenerationMixin):
    """`GenerationMixin` for a model whose `forward` runs a graph."""

    max_positions: int | None
    session: Any
    _check_cache: Callable[[Any, int | None], None]
    _cache_class: type[ORTCache]
    _vocabulary: int

    @torch.no_grad()
    def generate(
        self, inputs: Any = None, generation_config: GenerationConfig | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Continue texts as `GenerationMixin.generate` does; the arguments are the same.

        Prompts may be padded on either side. While tokens are chosen, padding stands on the left; in what is returned
        the prompts stand as they were given, the new tokens behind them.

        Args:
            inputs: token ids `[rows, tokens]`, a tensor, array or lists; None begins with the token that begins texts.
            generation_config: options of this call.
            *args: as transformers has them.
            **kwargs: options, `attention_mask`, `past_key_values` of an earlier call and so on.

        Returns:
            What transformers returns: the sequences, or an object that has them.

        Raises:
            InputError: a prompt without tokens, more tokens than the model has positions, an option that needs PyTorch.
        """

        def option(name: str) -> Any:
            places = (
                kwargs.get(name),
                getattr(generation_config, name, None),
                getattr(self.generation_config, name, None),
            )
            return next((value for value in places if value is not None), None)

        parent: Any = super()
        if kwargs.get("inputs_embeds") is not None:
            raise InputError("The ONNX graph takes token ids, not inputs_embeds.")
        for name, needs_torch in _NEEDS_TORCH.items():
            if needs_torch(option(name)):
                raise InputError(f"generate: {name}={option(name)!r} needs the PyTorch model, not an ONNX graph.")
        self._pack_negative_prompt(kwargs)
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        if inputs is None and (begin := option("bos_token_id")) is not None:
            inputs, kwargs["attention_mask"] = [[begin]], [[1]]
        if inputs is None:
            return parent.generate(None, generation_config, *args, **kwargs)
        given = token_ids(inputs, self._vocabulary)
        ids, mask = self._packed_prompt(given, kwargs, option)
        self._check_end(ids, mask, option)
        result = parent.generate(ids, generation_config, *args, attention_mask=mask, **kwargs)
        return result if ids is given else _with_prompts(result, given)

    def generate_batch(self, *_: Any, **__: Any) -> Any:
        """Refuse."""
        raise InputError("Continuous batching needs the PyTorch model: give all prompts to one call of generate.")

    init_continuous_batching = continuous_batching_context_manager = generate_batch

    def _packed_prompt(
        self, given: Tensor, kwargs: dict[str, Any], option: Callable[[str], Any]
    ) -> tuple[Tensor, Tensor]:
        """The prompt, each row's padding before its tokens, and its mask; what was said about it leaves `kwargs`.

        Of a prompt that goes on after a cache, the part behind the cache is meant.
        """
        rows = len(given)
        said, positions = kwargs.pop("attention_mask", None), kwargs.pop("position_ids", None)
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = self._cache_class.for_session(self.session)
        self._check_cache(cache, None)
        mask = _mask_from_padding(given, cache, option) if said is None else token_mask(said)
        held, width = cache.length, mask.shape[-1]
        if mask.dim() != 2 or len(mask) != rows or given.shape[1] not in (width, width - held):
            raise InputError(f"attention_mask is {tuple(mask.shape)}; it has to cover input_ids, {tuple(given.shape)}.")
        if width <= held:
            raise InputError(f"past_key_values holds {held} tokens and the prompt {width}: it has to go on after them.")
        new = mask[:, held:]
        if not (filled := new.any(dim=1)).all():
            raise InputError(f"Row {int((~filled).nonzero()[0])} of the prompt has no token, only padding.")
        if positions is not None:
            same_positions(torch.as_tensor(positions)[..., held - width :], new, cache, rows, width - held)
        ids, packed = _left(given[:, held - width :], new)
        if packed is new:
            return given, mask.long()
        before = given[:, : held - width]
        return torch.cat([before, ids], dim=1), torch.cat([mask[:, :held], packed], dim=1).long()

    def _pack_negative_prompt(self, kwargs: dict[str, Any]) -> None:
        """Move the padding of the prompt that guidance leads away from to the left."""
        if kwargs.get("negative_prompt_ids") is None:
            return
        ids = token_ids(kwargs["negative_prompt_ids"], self._vocabulary, "negative_prompt_ids")
        said = kwargs.get("negative_prompt_attention_mask")
        if said is not None:
            mask = token_mask(said, "negative_prompt_attention_mask")
            if mask.shape != ids.shape or not mask.any(dim=1).all():
                raise InputError(
                    "negative_prompt_attention_mask has to mark at least one token in each row of its prompt."
                )
            ids, mask = _left(ids, mask)
            kwargs["negative_prompt_attention_mask"] = mask.long()
        kwargs["negative_prompt_ids"] = ids

    def _check_end(self, ids: Tensor, mask: Tensor, option: Callable[[str], Any]) -> None:
        """Raise an InputError if the last tokens that are asked for lie beyond the model's positions."""
        limit = self.max_positions
        if limit is None:
            return
        longest = int(mask.sum(dim=1).max())
        more, end = option("max_new_tokens"), option("max_length")
        if more is None:
            more = 1 if end is None else end - ids.shape[1]
        check_positions(longest, more, limit)

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Make the graph's cache where transformers would make one of its own; assisted decoding wants it at once."""
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self._cache_class.for_session(self.session)
            return
        parent: Any = super()
        parent._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def can_generate(self) -> bool:
        """Tell transformers that `generate` works."""
        return True

    @classmethod
    def is_remote_code(cls) -> bool:
        """Tell transformers that this class is not code of a repository."""
        return False

    def get_experts_implementation(self) -> dict[str, str]:
        """Tell transformers that no module offers a choice of expert kernels."""
        return {}

    def get_output_embeddings(self) -> None:
        """Tell transformers that there is no module of output embeddings."""
        return


def check_positions(prompt: int, new: int, limit: int, *, last_is_read: bool = False) -> None:
    """Raise an InputError if a model with `limit` positions cannot add `new` tokens to a prompt.

    The last token is not read any more, and needs no position but in onnxruntime-genai (`last_is_read`).
    """
    room = limit - prompt + (not last_is_read)
    if room < 1:
        raise InputError(f"The prompt has {prompt} tokens; the model has {limit} positions: shorten the prompt.")
    if new > room:
        raise InputError(
            f"The prompt has {prompt} tokens and {new} more are asked for; the model has {limit} positions: ask for at "
            f"most {room} (max_new_tokens), or shorten the prompt."
        )


def _mask_from_padding(ids: Tensor, cache: ORTCache, option: Callable[[str], Any]) -> Tensor:
    """A mask, where none was given, from the padding token that is no end token, as transformers has it.

    Rows of nothing but that token are texts. Of a cache, its own record counts.
    """
    pad, ends = option("pad_token_id"), option("eos_token_id")
    mask = torch.ones_like(ids, dtype=torch.bool)
    if pad is not None and pad not in (ends if isinstance(ends, list | tuple) else [ends]):
        mask = ids != pad
        mask |= ~mask.any(dim=1, keepdim=True)
    if cache.length:
        mask[:, : cache.length] = True if cache.mask is None else cache.mask
    return mask


def _left(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with their padding moved to the left; the same tensors if it is there."""
    if (mask[:, 1:] >= mask[:, :-1]).all():
        return ids, mask
    order = mask.to(torch.int8).argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def _with_prompts(result: Any, given: Tensor) -> Any:
    """What `generate` returned, with the prompts as they were given."""
    sequences = result if isinstance(result, Tensor) else result.sequences
    prompts = given.repeat_interleave(len(sequences) // len(given), dim=0)
    sequences = torch.cat([prompts, sequences[:, given.shape[1] :]], dim=1)
    if isinstance(result, Tensor):
        return sequences
    result.sequences = sequences
    return result
