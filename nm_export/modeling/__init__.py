"""The three files that every published repository carries, and the single home of the run-time arithmetic."""

from nm_export import torch_ops

from .configuration_nm_sparse import NMSparseConfig
from .modeling_nm_sparse import NMSparseForCausalLM, NMSparseLinear, NMSparseModel, nm_topk

__all__ = ["NMSparseConfig", "NMSparseForCausalLM", "NMSparseLinear", "NMSparseModel", "nm_topk"]

torch_ops.register()
