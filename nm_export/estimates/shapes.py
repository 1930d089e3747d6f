"""The shapes of a sparse model and its files, without a weight: exact for safetensors, near for ONNX."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from nm_export.modeling import NMSparseForCausalLM
from nm_export.onnx.base_graph import builder_architecture
from nm_export.plan import Plan, PlannedLinear, make_plan
from nm_export.recipe import OnnxSection, Recipe
from nm_export.sources import load_config_only

_FLOAT16 = 2  # bytes of a scale of NMSparseMatMulNBits; those of MatMulNBits are float32
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64"}


@dataclass(frozen=True)
class Tensor:
    """A tensor that would be stored."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Numbers in it."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Shapes:
    """What a recipe makes of a model.

    Attributes:
        plan: which linears are pruned. With a budget, those that compete for it.
        tensors: what the safetensors files would hold, by name; tied weights once.
        dtype: of the weights.
        embedding: rows and columns of the token embedding.
        tied: whether the output layer's weight is the embedding.
        positions: of the tables of rotary embeddings in an ONNX graph.
        head_size: channels of an attention head.
        has_builder: whether onnxruntime-genai has a graph builder for the architecture.
    """

    plan: Plan
    tensors: Mapping[str, Tensor]
    dtype: torch.dtype
    embedding: tuple[int, int]
    tied: bool
    positions: int
    head_size: int
    has_builder: bool

    @property
    def new(self) -> dict[str, Tensor]:
        """The parameters of sparsity among the tensors."""
        return {name: tensor for name, tensor in self.tensors.items() if ".nm_" in name}

    @property
    def parameters(self) -> int:
        """Numbers that the base model has."""
        return sum(tensor.numel for name, tensor in self.tensors.items() if ".nm_" not in name)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the base model's weights, and so of the model in memory."""
        return sum(tensor.nbytes for name, tensor in self.tensors.items() if ".nm_" not in name)

    def bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of all tensors by the names of safetensors, `F32`, `BF16`, ..."""
        sums: dict[str, int] = {}
        for tensor in self.tensors.values():
            name = _NAMES.get(tensor.dtype, str(tensor.dtype))
            sums[name] = sums.get(name, 0) + tensor.nbytes
        return sums

    def safetensors_bytes(self) -> int:
        """Size of the file, header included, to the byte where it is one file; shards have a header each."""
        # wide types first, then by name; the length of the header, the header filled up to whole 8 bytes, the numbers
        ordered = sorted(self.tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in ordered:
            start, end = end, end + tensor.nbytes
            dtype = _NAMES.get(tensor.dtype, "F32")
            header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
        return 8 + -(-length // 8) * 8 + end

    def onnx_bytes(self, onnx: OnnxSection) -> int:
        """Size of `model.onnx.data`, to a percent or so."""
        linears = sum(_linear_bytes(linear, onnx) for linear in self.plan.linears)
        rows, columns = self.embedding
        head = PlannedLinear("lm_head", columns, rows, None, 0)
        shared = self.tied and (onnx.precision == "fp32" or (onnx.precision == "int4" and onnx.symmetric))
        embedding = _linear_bytes(head, onnx) + (0 if shared else 4 * rows * columns)
        tables = 4 * self.positions * self.head_size
        in_linears = {f"{linear.name}.weight" for linear in self.plan.linears}
        small = sum(4 * t.numel for name, t in self.tensors.items() if name not in in_linears and len(t.shape) == 1)
        return linears + embedding + tables + small

    def largest_linear(self) -> int:
        """Numbers in the largest weight that is worked on as a whole."""
        rows, columns = self.embedding
        return max(rows * columns, *(linear.macs for linear in self.plan.linears))


def find_shapes(recipe: Recipe) -> Shapes:
    """Resolve a recipe against its model's configuration; no weight is loaded and no memory taken for one.

    Raises:
        SourceUnavailableError: the configuration cannot be had right now.
        UserError: the recipe does not fit the model.
    """
    config = load_config_only(recipe.model)
    dtype = config.dtype if recipe.model.dtype == "auto" else getattr(torch, recipe.model.dtype)
    dtype = dtype if isinstance(dtype, torch.dtype) else torch.float32
    text = config.get_text_config()
    _fix_angles(text)
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        plan = make_plan(model, recipe)
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
        tied = head is not None and head.weight is embedding
        sparse = NMSparseForCausalLM.from_dense(model, plan.sparsity())
        seen: set[int] = set()
        tensors = {}
        for name, tensor in sparse.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                tensors[name] = Tensor(tuple(tensor.shape), tensor.dtype)
        rows, columns = embedding.shape
    heads = getattr(text, "num_attention_heads", 1)
    head_size = getattr(text, "head_dim", None) or columns // heads
    positions = getattr(text, "max_position_embeddings", 0)
    has_builder = builder_architecture(type(sparse)) is not None
    return Shapes(plan, tensors, dtype, (rows, columns), tied, positions, head_size, has_builder)


def _fix_angles(config: Any) -> None:
    """Let rotary angles be the same for every text: those that look at its length need numbers, which shapes lack."""
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *rope.values()):
        if isinstance(part, dict) and "dynamic" in str(part.get("rope_type")):
            part["rope_type"] = "default"


def _linear_bytes(linear: PlannedLinear, onnx: OnnxSection) -> int:
    """Bytes of one linear's weight and constants in an ONNX graph."""
    K, O = linear.in_features, linear.out_features  # noqa: E741
    if onnx.precision == "fp32":
        return 4 * K * O
    bits = {"int8": 8, "int4": 4}[onnx.precision]
    pruned = _reads_pruned(linear)
    scale = _FLOAT16 if pruned else 4
    zero_point = 0 if onnx.symmetric else _FLOAT16 if pruned else bits / 8
    return K * O * bits // 8 + int(O * -(-K // onnx.block_size) * (scale + zero_point))


def _reads_pruned(linear: PlannedLinear) -> bool:
    """Whether a linear with a quantized weight is an `NMSparseMatMulNBits`, and not a `MatMulNBits`."""
    return linear.scheme is not None and linear.scheme.prune != "weights"
