"""Make a model in memory sparse, without a recipe file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from nm_export.arguments import named
from nm_export.calibration.budget import OpenBudget, set_budget
from nm_export.calibration.neutral import await_calibration
from nm_export.calibration.weight_pruning import keep_dense_weights, prune_weights
from nm_export.errors import UserError
from nm_export.modeling import NMSparseForCausalLM
from nm_export.plan import make_plan
from nm_export.recipe import Recipe, SparsitySection, load_recipe
from nm_export.recipe.fields import with_fields_of
from nm_export.recipe.patterns import check_pattern
from nm_export.recipe.reading import section_from_fields


@with_fields_of(SparsitySection)
def sparsify(
    model: PreTrainedModel,
    recipe: Recipe | SparsitySection | Mapping[str, Any] | str | Path | None = None,
    **sparsity: Any,
) -> Any:
    """Turn a dense causal language model into an `NMSparseForCausalLM`, in place and without copying a weight.

    The result prunes at once, with neutral parameters: scores 1, shifts and biases 0. `nm_export.calibrate` fills what
    comes from weights and text, and `nm_export.learn` or an own loop in `nm_export.trainable` what is `learned`; until
    then learned parameters stay neutral. `model.set_sparsity(False)` or `with model.dense():` switches pruning off, and
    `model.to_dense()` makes the dense model again. `prune: weights` zeroes weights at once, too, and is not switched
    off; copies of those weights, as large as they are, are kept for `to_dense()`.

    Args:
        model: a causal language model of transformers.
        recipe: a pattern such as `"8:16"`, a `SparsitySection`, a `Recipe` or the path of one, of which the `sparsity`
            section counts. Beside a pattern further fields may be given, beside the others none.
        **sparsity: the fields of `SparsitySection`, as in `sparsify(model, pattern="8:16", targets=["*.down_proj"])`.
            With a `budget`, all targets are pruned at `pattern` until `calibrate` has seen text and chosen.

    Raises:
        UserError: both or wrong settings, or a model that they do not fit.
    """
    _check_model(model)
    section = _section(recipe, sparsity)
    plan = make_plan(model, section, with_onnx=False)
    exponents = {section.score_exponent, *(override.score_exponent for override in section.overrides)}
    if exponents - {None, 1.0} and not any(
        linear.scheme and linear.scheme.score == "weight_norm" for linear in plan.pruned
    ):
        raise UserError("sparsify: score_exponent is of the score weight_norm, which no module has.")
    try:
        sparse = NMSparseForCausalLM.from_dense(model, plan.sparsity())
    except ValueError as error:
        raise UserError(f"sparsify: {error}") from error
    budget = None if section.budget is None else OpenBudget(plan, section, sparse.config.sparsity)
    set_budget(sparse, budget)
    await_calibration(sparse)
    keep_dense_weights(sparse)
    prune_weights(sparse)
    return sparse


def _section(given: Any, fields: dict[str, Any]) -> SparsitySection:
    """What the caller means, whatever the form."""
    if isinstance(given, str) and not given.endswith((".yaml", ".yml")) and not Path(given).is_file():
        try:
            check_pattern(given)
        except ValueError as error:
            raise UserError(f"sparsify: {error}; or give the path of a recipe file.") from None
        if "pattern" in fields:
            raise UserError(f"sparsify was given two patterns, {given} and {fields['pattern']!r:.40}; give one.")
        return section_from_fields(SparsitySection, {"pattern": given, **fields}, "sparsify")
    if given is not None and fields:
        raise UserError("sparsify takes a recipe or the fields of its sparsity section, not both.")
    if given is None:
        return section_from_fields(SparsitySection, fields, "sparsify")
    if isinstance(given, SparsitySection):
        return given
    if isinstance(given, Recipe):
        return given.sparsity
    if isinstance(given, (str, Path)):
        return load_recipe(given, runs=False).sparsity
    if isinstance(given, Mapping):
        return section_from_fields(SparsitySection, given, "sparsify")
    raise UserError(
        "sparsify takes a pattern, a SparsitySection, a Recipe, the path of one, or keyword arguments, not "
        f"{named(given)}."
    )


def _check_model(model: Any) -> None:
    if hasattr(model, "nm_modules"):
        raise UserError("sparsify: the model is sparse already; model.to_dense() makes it dense again, in place.")
    if not isinstance(model, PreTrainedModel):
        hint = (
            ": load it with AutoModelForCausalLM.from_pretrained, or export it with a recipe"
            if isinstance(model, (str, Path))
            else ""
        )
        raise UserError(f"sparsify takes a causal language model of transformers in memory, not {named(model)}{hint}.")
    kind = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UserError(f"sparsify: {kind} is an encoder-decoder; give a decoder, which predicts the next token.")
    if model.get_output_embeddings() is None:
        raise UserError(
            f"sparsify: {kind} has no output layer, so it predicts no tokens; load it with AutoModelForCausalLM."
        )
    try:
        NMSparseForCausalLM.bound(type(model.config))
    except ValueError as error:
        raise UserError(f"sparsify: {error}") from error
