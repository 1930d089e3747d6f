"""The baseline that the paper compares with: N:M sparsity of the weights, fixed offline."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nm_export.errors import UserError
from nm_export.modeling.modeling_nm_sparse import group_size, keep_mask

_ELEMENTS = 1 << 22  # selected at a time: sorting holds several copies


@torch.no_grad()
def prune_weight_(weight: Tensor, n: int, m: int) -> None:
    """Zero all but the `n` largest magnitudes of every `m` neighbours along each row, in place.

    Ties keep the lower channel. Rows are treated a few at a time, so that memory stays small.

    Args:
        weight: `[O, K]`, any floating dtype; m divides K.
        n: weights kept of each group.
        m: weights in a group.
    """
    for rows in weight.split(max(1, _ELEMENTS // weight.shape[1]), dim=0):
        rows.masked_fill_(~keep_mask(rows.float().abs(), n, m), 0)


def keep_dense_weights(model: Any) -> None:
    """Copy the weights that a sparse model's schemes prune, so that `model.to_dense()` can give them back.

    The copies are in the memory of the host, as large as those weights, until then. Weights that are pruned already,
    and those that are elsewhere, are not copied.
    """
    for name, _ in _pruned_weights(model):
        weight = model.get_submodule(name).weight
        if name not in model.dense_weights and not weight.is_meta:
            model.dense_weights[name] = weight.detach().to("cpu", copy=True)


def prune_weights(model: Any) -> None:
    """Zero what the schemes of a sparse model prune of its weights, in place; pruned ones stay as they are.

    Raises:
        UserError: a weight is offloaded.
    """
    for name, pattern in _pruned_weights(model):
        weight = model.get_submodule(name).weight
        if weight.is_meta:
            raise UserError(f"prune: weights of {name} needs the weight in memory, but it is offloaded.")
        model.dense_weights.setdefault(name, None)
        prune_weight_(weight, *group_size(pattern, weight.shape[1]))


@contextmanager
def dense_weights(model: Any) -> Iterator[None]:
    """Within the block, give a sparse model the dense weights of which it has copies; prune all afterwards.

    When the block raises, weights without a copy are left as they are.
    """
    kept = {name: weight for name, weight in model.dense_weights.items() if weight is not None}
    with torch.no_grad():
        for name, weight in kept.items():
            model.get_submodule(name).weight.copy_(weight)
    try:
        yield
    except BaseException:
        if kept:
            prune_weights(model)
        raise
    prune_weights(model)


def _pruned_weights(model: Any) -> Iterator[tuple[str, str]]:
    """Names of the linears whose weights are pruned, and their patterns."""
    for scheme in model.config.sparsity["schemes"]:
        for name in scheme["modules"] if scheme["prune"] == "weights" else ():
            yield name, scheme["pattern"]
