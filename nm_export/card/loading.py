"""How to load a published model, in code that runs."""

from collections.abc import Iterator

from nm_export.card.facts import Facts
from nm_export.installation import how_to_install

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
tokenizer.update_options(add_special_tokens=True)
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=64)
generator = og.Generator(model, parameters)
generator.append_tokens(tokenizer.encode("Once upon a time"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))"""


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
    yield f"**ONNX Runtime**, with the interface of transformers: {how_to_install('onnx')}."
    yield _python(_ONNX, facts.repository)
    if not facts.with_genai:
        yield "onnxruntime-genai has no place for a model of this architecture."
        yield (
            "Without nm_export the folder `onnx` opens in `onnxruntime.InferenceSession` too. The graph then runs "
            "through standard operators: the same numbers, more slowly than the dense model."
        )
        return
    yield f"**onnxruntime-genai**: {how_to_install('genai')}."
    yield _python(_GENAI, facts.repository)
    yield (
        "Without nm_export the folder `onnx` opens in `onnxruntime_genai.Model` and in `onnxruntime.InferenceSession` "
        "too. The graph then runs through standard operators: the same numbers, more slowly than the dense model. "
        "`nm-export enable-genai FOLDER` puts the compiled kernel into a local copy, where onnxruntime-genai finds it."
    )
    yield (
        "Whoever feeds the graph without the classes above pads batches on the right. With padding on the left it "
        "computes wrong numbers, without an error."
    )


def _python(code: str, repository: str) -> str:
    return f"```python\n{code.format(repository=repository)}\n```"
