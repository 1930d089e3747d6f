"""Which models can be made sparse: refusals in one sentence, before hours of work."""

from collections.abc import Iterable

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from nm_export.errors import UserError


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


def check_missing(missing: Iterable[str], where: str) -> None:
    """Raise UserError when the checkpoint lacks tensors; transformers would fill them with random numbers."""
    names = sorted(missing)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(f"{where} lacks the tensors {', '.join(names[:3])}{more}; the checkpoint is incomplete")
