"""The linear layers of the architectures that the benchmarks know, by name."""

from collections.abc import Mapping
from dataclasses import dataclass

from nm_export.errors import UserError


@dataclass(frozen=True)
class Shape:
    """A linear layer as ONNX stores it, `[K, O]`, and the modules that have it."""

    modules: str
    K: int
    O: int  # noqa: E741


@dataclass(frozen=True)
class Architecture:
    """Widths of a decoder layer.

    Attributes:
        name: as it is given on the command line.
        source: whose config.json the numbers are from, fields hidden_size, intermediate_size, num_attention_heads,
            num_key_value_heads and head_dim (hidden_size / num_attention_heads where the file has none).
        config_class: configuration class of transformers.
    """

    name: str
    source: str
    config_class: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int

    def shapes(self) -> tuple[Shape, ...]:
        """The distinct shapes of a layer's linears, those of one shape together, in the order of the layer."""
        attention, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        linears = (
            ("q", self.hidden, attention),
            ("k, v", self.hidden, kv),
            ("o", attention, self.hidden),
            ("gate, up", self.hidden, self.intermediate),
            ("down", self.intermediate, self.hidden),
        )
        modules: dict[tuple[int, int], list[str]] = {}
        for name, rows, columns in linears:
            modules.setdefault((rows, columns), []).append(name)
        return tuple(Shape(", ".join(names), *shape) for shape, names in modules.items())


_ARCHITECTURES = (
    Architecture("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "LlamaConfig", 576, 1536, 9, 3, 64),
    Architecture("mistral-7b", "mistralai/Mistral-7B-v0.3", "MistralConfig", 4096, 14336, 32, 8, 128),
    Architecture("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", "LlamaConfig", 4096, 14336, 32, 8, 128),
    Architecture("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "Qwen2Config", 3584, 18944, 28, 4, 128),
    Architecture("gemma-3-4b", "google/gemma-3-4b-it", "Gemma3TextConfig", 2560, 10240, 8, 4, 256),
)
ARCHITECTURES: Mapping[str, Architecture] = {known.name: known for known in _ARCHITECTURES}
"""All that are known, by name."""


def architecture(name: str) -> Architecture:
    """Look one up.

    Raises:
        UserError: there is none of that name.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"--architecture {name!r} is not known; known are {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]
