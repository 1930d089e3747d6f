"""The baseline that the paper compares with: N:M sparsity of the weights, fixed offline."""

import torch
from torch import Tensor

from nm_export.modeling.modeling_nm_sparse import keep_mask

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
