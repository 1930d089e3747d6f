"""Whether output layer and embedding are one weight: what the parameters are, not what the configuration says."""

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_tied(model: "PreTrainedModel") -> bool:
    """Whether the output layer of a model computes with the very parameter of its token embedding."""
    head: nn.Module | None = model.get_output_embeddings()
    embedding: nn.Module | None = model.get_input_embeddings()
    weight = getattr(head, "weight", None)
    return weight is not None and weight is getattr(embedding, "weight", None)


def record_tying(model: "PreTrainedModel") -> None:
    """Let `config.tie_word_embeddings` say what the parameters are.

    transformers does not tie what a checkpoint holds twice with different numbers, whatever the configuration says; and
    parameters in memory can be joined or parted. Whoever builds the model again goes by the configuration.
    """
    if model.get_output_embeddings() is not None and model.config.tie_word_embeddings != is_tied(model):
        model.config.tie_word_embeddings = is_tied(model)
