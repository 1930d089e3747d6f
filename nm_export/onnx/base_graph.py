"""The dense graph of a transformers causal language model, built from the model in memory by onnxruntime-genai.

The builder of onnxruntime-genai writes one graph for prefill and decode with grouped-query attention, weights stored
`K x O`. It is made to read a checkpoint; here it reads a live model instead: no second load, no Hub, no copy on disk.
Weights are widened to float32 while they are written, some rows at a time; what is mapped from a file stays there.
q, k and v stay separate products, and packed linears (Phi-3's `qkv_proj`, `gate_up_proj`) become one product a part.
"""

import contextlib
import copy
import io
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache

from nm_export.errors import NMExportError, UserError
from nm_export.onnx.extras import require
from nm_export.onnx.session import empty_cache
from nm_export.tokenizer_files import load_tokenizer, save_tokenizer
from nm_export.tying import is_tied

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from transformers import PreTrainedConfig, PreTrainedModel

# Model class of transformers -> class of onnxruntime_genai.models.builders. Architectures enter this table with a test.
_BUILDERS = {
    "Gemma2ForCausalLM": "Gemma2Model",
    "Gemma3ForCausalLM": "Gemma3Model",
    "GemmaForCausalLM": "GemmaModel",
    "GraniteForCausalLM": "GraniteModel",
    "LlamaForCausalLM": "LlamaModel",
    "MistralForCausalLM": "MistralModel",
    "Phi3ForCausalLM": "Phi3MiniModel",
    "Qwen2ForCausalLM": "QwenModel",
    "Qwen3ForCausalLM": "Qwen3Model",
    "SmolLM3ForCausalLM": "SmolLM3Model",
}
_GENAI_TYPES = {"Gemma3ForCausalLM": "gemma3_text"}
_BEYOND, _FAR = 16, 256  # cached tokens: behind a border, and where a model knows none
_CHEAP = 64_000_000  # bytes of a cache
_LENGTH_KEYS = ("use_dynamic_ntk", "use_logn_attn")  # of models with code of their own
OPSET = 22
AUTHORS = {"builder": "the graph builder of onnxruntime-genai", "generic": "the exporter of transformers"}
"""Whose work the graphs of an exporter are, in words."""
ALIGNMENT = 4096  # of external tensors: whole pages can be mapped, and rows start on a cache line


@dataclass(frozen=True)
class Product:
    """One MatMul of the graph: rows `start:stop` of a module's weight, all of them unless the module is packed."""

    node: str
    start: int
    stop: int


@dataclass(frozen=True)
class BaseGraph:
    """A dense graph on disk, `path`, and the products that compute each linear of the model, by module name.

    `tied` names the output layer and the embedding where their weights are one; `exporter` is what wrote the graph,
    "builder" or "generic".
    """

    path: Path
    products: dict[str, tuple[Product, ...]]
    tied: tuple[str, str] | None = None
    exporter: str = "builder"


def node_path(module: str) -> str:
    """The path that stands for a module in names of nodes: `model.layers.0.mlp` is `/model/layers.0/mlp`."""
    return "/" + re.sub(r"\.(?!\d)", "/", module)


def architecture(model: "PreTrainedModel") -> str:
    """Name of the transformers class that `model` is or, when it is sparse, extends."""
    names = (base.__name__ for base in type(model).__mro__ if base.__module__.startswith("transformers.models."))
    return next(names, type(model).__name__)


def builder_architecture(model_class: type) -> str | None:
    """Name of the transformers class by which the graph builder knows models of a class; None where it does not."""
    return next((base.__name__ for base in model_class.__mro__ if base.__name__ in _BUILDERS), None)


def check_exportable(model: "PreTrainedModel", opset: int | None = None) -> None:
    """Refuse what no exporter takes.

    Raises:
        UserError: another opset than 22, a model that is not on the CPU or whose weights are quantized, positions whose
            encoding changes with the length of the text.
    """
    check_positions(model.config)
    if opset not in (None, OPSET):
        raise UserError(f"onnx.opset {opset} is not supported: the graph is written in opset {OPSET}.")
    if model.device.type != "cpu":
        raise UserError(f"The model is on {model.device}; the ONNX export reads it from the CPU: model.to('cpu').")
    if hasattr(getattr(model.config, "base_config", model.config), "quantization_config"):
        raise UserError("A quantized base model cannot be exported to ONNX: load it without quantization.")


def check_positions(config: "PreTrainedConfig") -> None:
    """Raise UserError for a configuration whose positions are encoded differently in texts of different lengths.

    A graph has one table of angles; keys that are in the cache already have been turned by it.
    """
    config = getattr(config, "base_config", config).get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {part.get("rope_type", part.get("type")) for part in (rope, *rope.values()) if isinstance(part, dict)}
    found = [f"RoPE type {kind}" for kind in kinds if kind and ("dynamic" in kind or kind == "longrope")]
    found += [key for key in _LENGTH_KEYS if getattr(config, key, None)]
    if found:
        raise UserError(
            f"{found[0]} cannot be exported to ONNX: its angles depend on the length of the text; leave ONNX out "
            "(--skip-onnx)."
        )


def build_base_graph(
    model: "PreTrainedModel",
    tokenizer_dir: str | Path,
    directory: str | Path,
    *,
    opset: int | None = None,
    share_embedding: bool = True,
) -> BaseGraph:
    """Write the dense graph of `model` into `directory`: model.onnx, model.onnx.data, genai_config.json, tokenizer.

    A sparse model gives the graph of its dense twin. The model itself is left as it is. Weights are float32; see
    `build_dense_graph` for others.

    Args:
        model: causal language model on the CPU, dense or `NMSparseForCausalLM`.
        tokenizer_dir: folder that AutoTokenizer loads.
        directory: existing folder to write to.
        opset: version of the standard operators; 22 is what the builder writes, and the only one.
        share_embedding: whether tied embeddings are stored once. The builder keeps a float32 embedding of its own
            beside an output layer that is quantized.

    Raises:
        UserError: an architecture or opset that is not supported; onnxruntime-genai is not installed.
    """
    check_exportable(model, opset)
    name = builder_architecture(type(model))
    if name is None:
        raise UserError(f"The graph builder of onnxruntime-genai does not know {architecture(model)}.")
    require("onnxruntime_genai", "genai")
    require("onnx_ir", "genai")

    tokenizer = load_tokenizer(tokenizer_dir)
    directory = Path(directory)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        # The builder looks for the tokenizer and the generation settings behind config._name_or_path.
        tokenizer.save_pretrained(scratch)
        if model.generation_config is not None:
            model.generation_config.to_json_file(Path(scratch, "generation_config.json"))
        config = _builder_config(model, name, scratch)
        share_embedding = share_embedding and bool(config.tie_word_embeddings)
        builder = _in_memory_builder(name, shallow_copy(model), config, scratch, share_embedding)
        builder.make_model(scratch)
        builder.save_model(directory)
        builder.model_type = _GENAI_TYPES.get(name, name)
        builder.make_genai_config(config, {}, str(directory))
        tokenizer.model_max_length = builder.context_length  # "no limit" is 1e30, which genai's reader refuses
        save_tokenizer(tokenizer, directory)
    tied = names_of(model, model.get_output_embeddings(), model.get_input_embeddings())
    return BaseGraph(
        directory / "model.onnx", dict(builder.products), (tied[0], tied[1]) if config.tie_word_embeddings else None
    )


def check_base_graph(graph: BaseGraph, model: "PreTrainedModel", *, tolerance: float | None = None) -> float:
    """Compare the graph's logits with the dense torch model's: a prompt of two rows, then one token on its cache.

    Then one token on a long cache of random numbers: further away than an attention window and than the positions that
    the model was first trained for, as far as they are worth the memory (`far_position`).

    Args:
        graph: what `build_base_graph` returned.
        model: the model it was built from; a sparse one is compared with its pruning switched off.
        tolerance: largest difference allowed, as a share of the largest logit; None takes 1e-4 for float32 and as much
            as rounding makes of it for float16 (1e-2) and bfloat16 (1e-1).

    Returns:
        The largest difference, as a share of the largest logit.

    Raises:
        NMExportError: the difference is above the tolerance, so the exporter does not render this model.
    """
    import onnxruntime

    from nm_export.onnx.session import create_session

    if tolerance is None:
        tolerance = {torch.float32: 1e-4, torch.float16: 1e-2}.get(model.dtype, 1e-1)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(1, 35).mul(7919).remainder(vocabulary).reshape(2, 17)
    dense: Any = getattr(model, "dense", contextlib.nullcontext)
    with torch.inference_mode(), dense():
        expected = model(ids, use_cache=False).logits.float()

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")  # one use is not worth a copy of the weights
    session = create_session(graph.path, library=False, session_options=options)
    cache = empty_cache(session, len(ids))
    got = []
    for part in (ids[:, :-1], ids[:, -1:]):
        seen = next(iter(cache.values())).shape[2]
        mask = np.ones((len(ids), seen + part.shape[1]), np.int64)
        logits, *present = session.run(None, {"input_ids": part.numpy(), "attention_mask": mask, **cache})
        cache = dict(zip(cache, present, strict=True))
        got.append(torch.from_numpy(logits))
    worst = _difference(torch.cat(got, dim=1), expected)
    _judge(worst, tolerance, graph, model, "")
    if length := far_position(model, session):
        with dense():
            far = _far_difference(model, session, length)
        _judge(far, tolerance, graph, model, f" behind {length:,} cached tokens")
        worst = max(worst, far)
    return worst


def far_position(model: "PreTrainedModel", session: "InferenceSession") -> int:
    """How many cached tokens a graph is compared behind: more than the model's window, and than its first positions.

    A cache that takes more than a twentieth of the weights' memory is not made: then as many as are cheap. 0 where the
    model knows no such position.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    first = [part.get("original_max_position_embeddings") for part in (rope, *rope.values()) if isinstance(part, dict)]
    borders = [size for size in (getattr(config, "sliding_window", None), *first) if isinstance(size, int)]
    wanted = max(borders) + _BEYOND if borders else _FAR
    known: int = getattr(config, "max_position_embeddings", None) or wanted
    token = sum(4 * math.prod(cached.shape[1:2] + cached.shape[3:]) for cached in session.get_inputs()[2:])
    affordable = max(_CHEAP, sum(4 * p.numel() for p in model.parameters()) // 20) // max(token, 1)
    return max(0, min(wanted, known - 1, affordable))


def _far_difference(model: "PreTrainedModel", session: "InferenceSession", length: int) -> float:
    """Largest difference of the logits of one token behind `length` cached ones, as a share of the largest logit."""
    generator = np.random.default_rng(0)
    past = {
        name: generator.standard_normal((1, empty.shape[1], length, empty.shape[3]), dtype=np.float32)
        for name, empty in empty_cache(session, 1).items()
    }
    cache = DynamicCache()
    for layer in range(len(past) // 2):
        keys, values = (torch.from_numpy(past[f"past_key_values.{layer}.{part}"]) for part in ("key", "value"))
        cache.update(keys.to(model.dtype), values.to(model.dtype), layer)
    ids, mask = torch.ones(1, 1, dtype=torch.long), torch.ones(1, length + 1, dtype=torch.long)
    with torch.inference_mode():
        expected = model(ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits.float()
    feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), **past}
    return _difference(torch.from_numpy(session.run(["logits"], feeds)[0]), expected)


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def _judge(difference: float, tolerance: float, graph: BaseGraph, model: "PreTrainedModel", where: str) -> None:
    if not difference <= tolerance:
        raise NMExportError(
            f"The dense graph of {architecture(model)} differs from the torch model by {difference:.1e} of the largest "
            f"logit{where}, where {tolerance:.0e} is accepted: {AUTHORS[graph.exporter]} does not render this model."
        )


def _builder_config(model: "PreTrainedModel", name: str, folder: str) -> Any:
    """A copy of the base model's configuration, as the builder reads it."""
    config = copy.deepcopy(getattr(model.config, "base_config", model.config))
    config.architectures = [name]
    config._name_or_path = folder
    config.tie_word_embeddings = is_tied(model)
    if getattr(config, "sliding_window", None) and getattr(config, "layer_types", None) is None:
        # Mistral and Phi-3 slide in every layer without saying so layer by layer, which is where the builder looks.
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_size % 16:
        raise UserError(
            f"ONNX Runtime's attention takes heads of 16, 32, 48 ... channels, not heads of {head_size} channels."
        )
    rope = config.rope_parameters
    if name == "Gemma3ForCausalLM" and "full_attention" not in rope:
        raise UserError("A Gemma 3 model without a layer of full attention cannot be exported to ONNX.")
    for parameters in (rope,) if "rope_type" in rope else rope.values():
        parameters["rope_type"] = "default"  # the angles come from the model; the builder need not know how to scale
    if name == "Gemma3ForCausalLM":
        # transformers 5 keeps one set of RoPE parameters per kind of layer; the builder wants the global one flat and
        # the local base frequency by its former name.
        config.rope_local_base_freq = config.rope_parameters["sliding_attention"]["rope_theta"]
        config.rope_parameters = dict(config.rope_parameters["full_attention"])
    return config


def _in_memory_builder(name: str, weights: Any, config: Any, cache_dir: str, share_embedding: bool) -> Any:
    """The builder for an architecture, extended to read the live model and to note which node computes what."""
    import onnx_ir
    from onnxruntime_genai.models import builders

    from nm_export.onnx.streamed_tensor import StreamedTensor

    rope_kinds = iter(("full_attention", "sliding_attention"))
    rotary = next(m for m in weights.modules() if type(m).__name__.endswith("RotaryEmbedding"))

    class InMemoryBuilder(getattr(builders, _BUILDERS[name])):  # type: ignore[misc]
        def __init__(self, config: Any, cache_dir: str) -> None:
            options = {
                "fuse_qkv": False,
                "shared_embeddings": share_embedding,
                "windowed_kv_cache": False,  # every layer keeps a cache of full length, as GenerationMixin expects
            }
            self.products: dict[str, tuple[Product, ...]] = {}
            # id of a linear -> its module's name and its first row there
            self._linears = {id(m): (n, 0) for n, m in weights.named_modules() if isinstance(m, nn.Linear)}
            super().__init__(config, onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT, "cpu", cache_dir, options)
            if self.embed_attrs["scale"] != 1 and name.startswith("Gemma"):
                self.embed_attrs["scale"] = self.hidden_size**0.5  # the builder rounds it to two decimals

        def make_rotary_embedding_caches_from_scratch(self) -> tuple[torch.Tensor, torch.Tensor]:
            # The model's own table of angles: scalings that the builder does not know, or applies to the wrong layers,
            # are right by construction. Gemma 3 asks for the global table first, then for the local one.
            kind = (next(rope_kinds),) if name == "Gemma3ForCausalLM" else ()
            positions = torch.arange(self.rope_attrs["cache_length"])[None]
            cos, sin = rotary(torch.zeros(1), positions, *kind)
            return cos[0], sin[0]

        def load_weights(self, input_path: str) -> nn.Module:
            return weights

        def make_initializer(self, tensor: Any, /, name: str, **kwargs: Any) -> None:
            super().make_initializer(tensor, name, **kwargs)
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and kwargs.get("to") == onnx_ir.DataType.FLOAT:
                self.model.graph.initializers[name].const_value = StreamedTensor(tensor, name)

        def has_lm_head(self, module: nn.Module) -> bool:
            # not any linear that happens to be as wide as the vocabulary
            return module is weights.get_output_embeddings()

        def make_inputs_and_outputs(self) -> None:
            for shapes, kind in ((self.input_shapes, "past_key_values"), (self.output_shapes, "present")):
                for part in ("key", "value"):
                    shapes[f"{kind}.{part}"] = [*shapes[f"{kind}.{part}"][:-1], self.head_size]
            super().make_inputs_and_outputs()

        def make_matmul(self, matmul: Any, basename: str, root_input: str, **kwargs: Any) -> str:
            node = super().make_matmul(matmul, basename, root_input, **kwargs)
            module, start = self._linears[id(matmul)]
            product = Product(node, start, start + matmul.weight.shape[0])
            self.products[module] = (*self.products.get(module, ()), product)
            return node

        def make_attention_unpacked_regular(
            self, layer_id: int, attention: Any, qkv_linear: nn.Linear, root_input: str, **kwargs: Any
        ) -> None:
            super().make_attention_unpacked_regular(layer_id, attention, qkv_linear, root_input, **kwargs)
            self._note_parts(qkv_linear, (attention.q_proj, attention.k_proj, attention.v_proj))

        def make_mlp_unpacked_regular(
            self, layer_id: int, mlp: Any, gate_up_linear: nn.Linear, root_input: str
        ) -> None:
            super().make_mlp_unpacked_regular(layer_id, mlp, gate_up_linear, root_input)
            self._note_parts(gate_up_linear, (mlp.gate_proj, mlp.up_proj))

        def _note_parts(self, packed: nn.Linear, parts: tuple[nn.Linear, ...]) -> None:
            module, row = self._linears[id(packed)]
            for part in parts:
                self._linears[id(part)] = (module, row)
                row += part.weight.shape[0]

        def save_model(self, out_dir: str | Path) -> None:
            self.model.graph.sort()
            for node in self.model.graph:
                if node.op_type == "Constant":
                    node.outputs[0].shape = None  # declared a scalar even where it is a list
            type(self).stamp_build_metadata(self.model)
            onnx_ir.save(
                self.model,
                Path(out_dir, self.filename),
                external_data=f"{self.filename}.data",
                size_threshold_bytes=0,
                alignment=ALIGNMENT,
                align_threshold=ALIGNMENT,
            )

    return InMemoryBuilder(config, cache_dir)


def shallow_copy(module: nn.Module, seen: dict[int, nn.Module] | None = None) -> Any:
    """Copy a tree of modules but none of its matrices: the builder adds attributes to the modules that it reads.

    Vectors become float32, because the builder computes with them: Gemma's `1 + weight` would round in bfloat16.
    """
    seen = {} if seen is None else seen
    if id(module) not in seen:
        twin = seen[id(module)] = copy.copy(module)
        twin._parameters = {name: p if p is None else _wide(p) for name, p in module._parameters.items()}
        twin._buffers = dict(module._buffers)
        twin._modules = {name: child and shallow_copy(child, seen) for name, child in module._modules.items()}
    return seen[id(module)]


def names_of(model: nn.Module, *modules: nn.Module) -> list[str]:
    """Names of modules within a model."""
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(module)] for module in modules]


def _wide(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dim() > 1 or parameter.dtype == torch.float32:
        return parameter
    return nn.Parameter(parameter.detach().float(), requires_grad=False)
