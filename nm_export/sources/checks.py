"""Which models can be made sparse: refusals in one sentence, before hours of work."""

import re
from collections.abc import Iterable, Sequence

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from nm_export.causality import check_causal_config
from nm_export.errors import UserError
from nm_export.progress import say

_HEADS = ("lm_head.weight", "embed_out.weight")
_BIASES = ("attention_bias", "mlp_bias", "qkv_bias", "use_bias", "use_qkv_bias", "bias")
_COMPUTED = re.compile(
    r"(^|\.)(inv_freq|original_inv_freq|rope_freqs\.weight|masked_bias|position_ids|causal_mask)$"
    r"|(^|\.)(attn|attention|self_attn)\.bias$"  # the causal mask of old checkpoints: no linear has this name
)
"""Tables that older versions of transformers stored with the weights, and that GGUF stores."""
_OTHER_PARTS = re.compile(
    r"(^|\.)(mtp|vision_\w+|visual\w*|image_\w+|multi_modal_projector|mm_projector|audio_\w+|speech_\w+|"
    r"embed_vision|embed_audio)\."
)


def check_config(config: PreTrainedConfig, where: str, *, dequantized: bool = False) -> None:
    """Raise UserError for a model that is no plain decoder-only language model with floating-point weights.

    `dequantized` says that the weights were turned into floats while loading (GGUF).
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None and not dequantized:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        method = getattr(method, "value", method)
        raise UserError(
            f"{where} is quantized ({method}); give the unquantized model, or a GGUF file, which is dequantized"
        )
    if config.is_encoder_decoder:
        raise UserError(
            f"{where} is an encoder-decoder model ({config.model_type}); only decoder-only models are supported"
        )
    parts = [
        name for name in ("text_config", "vision_config", "audio_config") if getattr(config, name, None) is not None
    ]
    if parts:
        raise UserError(
            f"{where} is multimodal ({config.model_type} with {', '.join(parts)}); "
            "give its text-only model, if it has one"
        )
    remote = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in remote:
        raise UserError(f"{where} is a {config.model_type} model, which has no causal language model in transformers")
    check_causal_config(config, where)


def check_missing(missing: Iterable[str], where: str) -> None:
    """Raise UserError when the checkpoint lacks tensors; transformers would fill them with random numbers."""
    names = sorted(missing)
    if not names:
        return
    if all(name in _HEADS for name in names):
        raise UserError(
            f"{where} lacks the tensor {names[0]}: the checkpoint is incomplete, or its output layer is its embedding; "
            "then set tie_word_embeddings to true in its config.json"
        )
    raise UserError(f"{where} lacks the tensors {listed(names)}; the checkpoint is incomplete")


_CORRECT = (
    "correct its config.json. If the tensors mean nothing, load the model with transformers and save it again, which "
    "drops them"
)


def check_surplus(surplus: Iterable[str], config: PreTrainedConfig, where: str, remedy: str = _CORRECT) -> None:
    """Look at the tensors of a checkpoint that the model did not take: computed without them, it is another model.

    Parts of a larger model that the language model does without (images, sound, the prediction of further tokens) are
    said in a sentence; tables that every model computes for itself are nothing to talk about.

    Args:
        surplus: names of the tensors.
        config: the model's configuration.
        where: the model in a few words, for messages.
        remedy: what to do about others.

    Raises:
        UserError: there are others, such as biases that the configuration has no place for, or further layers.
    """
    names = sorted(name for name in surplus if not _COMPUTED.search(name))
    left_out = [name for name in names if _is_apart(name, config)]
    tell_left_out(left_out, where)
    without_place = [name for name in names if name not in left_out]
    if without_place:
        raise UserError(
            f"{where} holds the tensors {listed(without_place)}, for which its configuration has no place"
            f"{_why(without_place, config)}: without them it would be another model; {remedy}"
        )


def tell_left_out(names: Iterable[str], where: str) -> None:
    """Say which tensors of a checkpoint are no part of the language model; nothing of those that are no weights."""
    left_out = sorted(name for name in names if not _COMPUTED.search(name))
    if left_out:
        say(f"Left out of {where}: {listed(left_out)}, which its language model computes without.")


def _is_apart(name: str, config: PreTrainedConfig) -> bool:
    """Whether a tensor belongs to a part that is not the language model's, or predicts tokens after the next one."""
    if _OTHER_PARTS.search(name):
        return True
    further = getattr(config, "num_nextn_predict_layers", None) or 0
    layer = _layer(name)
    return layer is not None and 0 <= layer - config.num_hidden_layers < further


def _layer(name: str) -> int | None:
    """Number of the decoder layer that a tensor belongs to."""
    found = re.search(r"\b(?:layers|h|blocks|blk)\.(\d+)\.", name)
    return int(found[1]) if found else None


def _why(names: Sequence[str], config: PreTrainedConfig) -> str:
    """What in the configuration may be wrong, in brackets; "" if nothing is known."""
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and all((_layer(name) or 0) >= layers for name in names):
        return f" (num_hidden_layers is {layers})"
    switches = [
        f"{key} is {str(getattr(config, key)).lower()}" for key in _BIASES if getattr(config, key, None) is False
    ]
    if switches and all(name.endswith(".bias") for name in names):
        return f" ({', '.join(switches)})"
    return ""


def listed(names: Sequence[str]) -> str:
    """Name the first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
