"""Make a model in memory sparse, without a recipe file."""

from typing import Any

from transformers import PreTrainedModel

from nm_export.calibration.weight_pruning import keep_dense_weights, prune_weights
from nm_export.errors import UserError
from nm_export.modeling import NMSparseForCausalLM
from nm_export.plan import make_plan
from nm_export.recipe import Recipe


def sparsify(model: PreTrainedModel, recipe: Recipe | None = None, **sparsity: Any) -> Any:
    """Turn a dense causal language model into an `NMSparseForCausalLM`, in place and without copying a weight.

    The result prunes at once, with neutral parameters; `nm_export.calibrate` fills them. `model.set_sparsity(False)` or
    `with model.dense():` switches pruning off. `prune: weights` zeroes weights at once, too, and is not switched off;
    copies of those weights, as large as they are, are kept for `to_dense()`.

    Args:
        model: a causal language model of transformers.
        recipe: whose `sparsity` section to follow.
        **sparsity: the section's fields instead, as in `sparsify(model, pattern="8:16", targets=["*.down_proj"])`.

    Raises:
        UserError: both or wrong settings, or a model that they do not fit.
    """
    if recipe is not None and sparsity:
        raise UserError("sparsify takes a recipe or the fields of its sparsity section, not both.")
    if recipe is None:
        try:
            recipe = Recipe.from_dict({"model": {"source": "in memory"}, "sparsity": sparsity})
        except ValueError as error:
            raise UserError(f"sparsify: {_first_problem(error)}") from error
    sparse = NMSparseForCausalLM.from_dense(model, make_plan(model, recipe, with_onnx=False).sparsity())
    keep_dense_weights(sparse)
    prune_weights(sparse)
    return sparse


def _first_problem(error: ValueError) -> str:
    problem = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": str(error)}
    return f"{'.'.join(map(str, problem['loc'][1:]))}: {problem['msg']}"
