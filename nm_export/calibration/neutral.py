"""Models in memory whose parameters are still neutral: what calibration has not filled is not what a scheme says."""

from typing import Any

from nm_export.errors import UserError

_MARK = "_nm_neutral"


def await_calibration(model: Any) -> None:
    """Note on a new sparse model that `calibrate` has not filled its parameters; copies take the note along."""
    model.__dict__[_MARK] = True


def end_of_waiting(model: Any) -> None:
    """Take the note away."""
    model.__dict__.pop(_MARK, None)


def refuse_neutral(model: Any, caller: str) -> None:
    """Raise a UserError for a model that waits for a calibration which would change it.

    Its configuration would name a score or a shift that its numbers do not have.
    """
    words = [word for scheme in model.config.sparsity["schemes"] for word in _calibrated(scheme)]
    if words and model.__dict__.get(_MARK, False):
        raise UserError(
            f"{caller}: the model has {words[0]}, which nothing has computed yet: until then its numbers are neutral. "
            "Pass it to nm_export.calibrate first, with text where the scheme needs some."
        )


def _calibrated(scheme: dict[str, Any]) -> list[str]:
    """What of a scheme calibration computes, in the words of a recipe."""
    if scheme["prune"] == "weights":
        return []
    needs = {
        f"score: {scheme['score']}": scheme["score"] not in ("magnitude", "clact_noncausal"),
        f"shift: {scheme['shift']}": scheme["shift"] in ("static_scalar", "static_channel"),
        "output_bias: calibrated": scheme["output_bias"] == "calibrated",
        "a residual": scheme["residual_rank"] > 0,
    }
    return [word for word, needed in needs.items() if needed]
