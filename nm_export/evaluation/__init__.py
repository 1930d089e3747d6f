"""Quality of a model on held-out text, alone and beside another."""

from nm_export.evaluation.quality import Divergence, divergence, perplexity, torch_logits

__all__ = ["Divergence", "divergence", "perplexity", "torch_logits"]
