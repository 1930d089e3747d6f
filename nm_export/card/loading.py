"""How to load a published model, in code that runs."""

import re
from collections.abc import Iterator

from nm_export.card.facts import Facts

_TORCH = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repository}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{repository}", trust_remote_code=True)
tokens = model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=32)
print(tokenizer.decode(tokens[0]))"""
_ONNX = """from nm_export import NMSparseORTModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repository}", trust_remote_code=True)
model = NMSparseORTModelForCausalLM.from_pretrained("{repository}")
tokens = model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=32)
print(tokenizer.decode(tokens[0]))"""
_GENAI = """import onnxruntime_genai as og
from nm_export.onnx import genai_model

model = genai_model("{repository}")
tokenizer = og.Tokenizer(model)
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=64)
generator = og.Generator(model, parameters)
generator.append_tokens(tokenizer.encode("Once upon a time"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))"""
_NAMES = re.compile(r"((?:from_pretrained|genai_model)\((?:\"|&quot;))([^\"&]+)")


def loading_section(facts: Facts) -> Iterator[str]:
    """The section of a card, part by part."""
    yield "## Load it"
    yield (
        "**PyTorch** needs `torch` and `transformers` only. It is for reference and further work; the speed is in ONNX "
        "Runtime."
    )
    yield _python(_TORCH, facts.repository)
    if facts.base_weights:
        place = facts.base_weights.get("repo_id")
        yield (
            "Weights that did not change are not here: they are read from "
            + (f"`{place}`, commit `{facts.base_weights['revision']}`" if place else "the base model's folder")
            + ", and compared with the SHA-256 in `config.json` first."
        )
    if not facts.with_onnx:
        return
    yield '**ONNX Runtime**, with the interface of transformers: `pip install "nm_export[onnx]"`.'
    yield _python(_ONNX, facts.repository)
    if facts.with_genai:
        yield '**onnxruntime-genai**: `pip install "nm_export[genai]"`.'
        yield _python(_GENAI, facts.repository)
    else:
        yield "onnxruntime-genai has no place for a model of this architecture."
    where = "`onnxruntime_genai.Model` and in " if facts.with_genai else ""
    yield (
        f"Without nm_export the folder `onnx` opens in {where}`onnxruntime.InferenceSession` too. The graph then runs "
        "through standard operators: the same numbers, slowly."
    )


def naming(text: str, repository: str) -> str:
    """Return a card or its HTML page with lines that load the model from `repository`."""
    return _NAMES.sub(lambda match: match[1] + repository, text)


def named_in(text: str) -> str | None:
    """What the lines of a card load the model from."""
    match = _NAMES.search(text)
    return match[2] if match else None


def _python(code: str, repository: str) -> str:
    return f"```python\n{code.format(repository=repository)}\n```"
