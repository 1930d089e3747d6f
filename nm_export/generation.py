"""Continue a text with an exported model, in PyTorch, ONNX Runtime or onnxruntime-genai."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from nm_export.errors import UserError
from nm_export.exported import Parts, find_exported
from nm_export.loading import load_exported
from nm_export.quiet import quiet_transformers
from nm_export.tokenizer_files import load_tokenizer
from nm_export.torch_ops import prepare

# Storing the weights in another order takes as long as some 30 tokens get faster by it.
_TOKENS_WORTH_PREPARING = 60
_SPARE_POSITIONS = 2  # rows of a table that stand for padding, as OPT has them


def generate(
    folder: str | Path, prompt: str, *, backend: str = "torch", max_new_tokens: int = 64, dense: bool = False
) -> str:
    """Return the greedy continuation of `prompt`; with a chat template, the answer to it.

    Args:
        folder: a folder that an export wrote, or the name of a published repository.
        prompt: text, or the user's message to a chat model.
        backend: `torch`, `onnx` (ONNX Runtime) or `genai` (onnxruntime-genai).
        max_new_tokens: longest continuation.
        dense: switch sparsity off; torch only, because the ONNX graph has no dense branch.

    Raises:
        UserError: no such folder, or a backend that it was not exported for.
    """
    if dense and backend != "torch":
        raise UserError(f"--dense needs --backend torch: the ONNX graph of {folder} has no dense branch.")
    parts: Parts = "torch" if backend == "torch" else "onnx"
    folder = find_exported(folder, parts)
    if backend == "genai":
        return _generate_genai(folder, prompt, max_new_tokens)
    model: Any
    if backend == "onnx":
        from nm_export.onnx import NMSparseORTModelForCausalLM

        tokenizer = load_tokenizer(folder)
        model = NMSparseORTModelForCausalLM.from_pretrained(folder)
    else:
        with quiet_transformers():
            model, tokenizer, _ = load_exported(folder)
        model.set_sparsity(not dense)
        if not dense and max_new_tokens >= _TOKENS_WORTH_PREPARING:
            prepare(model)
    ids = torch.tensor([_prompt_ids(tokenizer, prompt)])
    if backend == "torch":
        _check_positions(model, ids.shape[1], max_new_tokens)
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens)
    return _text(tokenizer, tokens[0, ids.shape[1] :].tolist())


def _generate_genai(folder: Path, prompt: str, max_new_tokens: int) -> str:
    from nm_export.onnx import genai_model
    from nm_export.onnx.genai import context_length

    model = genai_model(folder / "onnx")
    import onnxruntime_genai as og

    from nm_export.onnx.graph_generation import check_positions

    tokenizer = load_tokenizer(folder)
    ids = _prompt_ids(tokenizer, prompt)
    check_positions(len(ids), max_new_tokens, context_length(folder / "onnx"), last_is_read=True)
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + max_new_tokens, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return _text(tokenizer, tokens)


def _check_positions(model: Any, prompt: int, new: int) -> None:
    """Raise a UserError if a model that looks positions up in a table has too few of them; angles have no end."""
    from nm_export.onnx.graph_generation import check_positions

    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    words = model.get_input_embeddings()
    tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not words]
    tables += [buffer for name, buffer in model.named_buffers() if "position" in name]
    if limit is not None and any(
        limit <= len(table) <= limit + _SPARE_POSITIONS for table in tables if table.dim() == 2
    ):
        check_positions(prompt, new, limit)


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return at least one token, or raise a UserError: a model continues tokens, and an empty text may have none."""
    if tokenizer.chat_template is None:
        ids = list(tokenizer(prompt)["input_ids"])
        if not ids:
            raise UserError(f"the prompt {prompt!r:.40} has no tokens; give a text to continue.")
        return ids
    messages = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))


def _text(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
