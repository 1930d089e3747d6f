"""Scores that a caller computes: a vector, or a function of the weights and of what text has shown of the input."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from nm_export.arguments import named
from nm_export.calibration.offload import weights_at_hand
from nm_export.calibration.statistics import InputStatistics, Statistic
from nm_export.errors import UserError

ScoreFunction = Callable[[Tensor, InputStatistics | None], Any]
"""From the weights of all linears that read an input, `[O, K]` one below the other, and the statistics of the input
(None without text) to a score `[K]`."""

Scores = ScoreFunction | Mapping[str, Any]
"""A function for all custom scores; or, by names or wildcards of modules, vectors `[K]` and functions."""

ALL_STATISTICS: frozenset[Statistic] = frozenset({"median_sum", "square_sum", "maximum"})
"""What a function may ask of the statistics, besides the mean."""


def is_custom(score: str) -> bool:
    """Whether a scheme's word for its score names one that a caller computes."""
    return score.startswith("custom:")


class CustomScores:
    """Which of a caller's scores belongs to which input.

    Args:
        scores: see `Scores`; None keeps the scores that the model has.
        groups: names of the linears that read one input and have a custom score, input by input.

    Raises:
        UserError: a key matches no linear with a custom score, an input has none, or linears of one input have
            different ones.
    """

    def __init__(self, scores: Scores | None, groups: Sequence[Sequence[str]]) -> None:
        self._by_input: dict[str, Any] = {}
        if scores is None:
            return
        if not isinstance(scores, Mapping) and not callable(scores):
            raise UserError(
                f"calibrate: scores are a function or a mapping from names to vectors, not {named(scores)}."
            )
        names = [name for group in groups for name in group]
        if not names:
            raise UserError('calibrate was given scores, but no module has one; sparsify with score="custom:NAME".')
        table: Mapping[str, Any] = scores if isinstance(scores, Mapping) else {"*": scores}
        for key in table:
            if not any(fnmatchcase(name, key) for name in names):
                close = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; there is {names[0]}, for example."
                raise UserError(f"calibrate: scores name {key}, which is no module with a custom score{hint}")
        for group in groups:
            found = [score for name in group if (score := _of_module(name, table)) is not None]
            if not found:
                raise UserError(f"calibrate: scores say nothing about {group[0]}.")
            if not all(_same(found[0], other) for other in found[1:]):
                raise UserError(
                    f"calibrate: {' and '.join(group)} read one input and keep the same of it; give them one score."
                )
            self._by_input[group[0]] = found[0]

    def needs(self, name: str) -> frozenset[Statistic]:
        """Statistics of the input whose first linear is called `name`."""
        return ALL_STATISTICS if callable(self._by_input.get(name)) else frozenset()

    def of(self, name: str, linears: Sequence[Any], statistics: InputStatistics | None) -> Tensor | None:
        """Return the score of an input, float32 `[K]`; None keeps what its linears have.

        Raises:
            UserError: it is no vector `[K]` of finite numbers that are not negative, or there is none.
        """
        score = self._by_input.get(name)
        first = linears[0]
        if score is None:
            if bool((first.nm_score == 1).all()):
                raise UserError(f"{name} has the score {first.score}; give its values: calibrate(model, scores=...).")
            return None
        if callable(score):
            with weights_at_hand(linears), torch.no_grad():
                score = score(torch.cat([linear.weight.detach() for linear in linears]), statistics)
        return _checked(score, name, first.in_features)


def _of_module(name: str, table: Mapping[str, Any]) -> Any:
    """What is said of a module: under its own name, or else under the last wildcard that matches."""
    if name in table:
        return table[name]
    return next((table[key] for key in reversed(list(table)) if fnmatchcase(name, key)), None)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or torch.equal(one, other)
    return one is other


def _checked(score: Any, name: str, channels: int) -> Tensor:
    try:
        vector = torch.as_tensor(score).detach().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"The score of {name} is {named(score)}, not a vector of {channels} numbers.") from error
    if vector.shape != (channels,):
        raise UserError(f"The score of {name} has the shape {list(vector.shape)}; its input has {channels} channels.")
    if not bool(vector.isfinite().all()):
        raise UserError(f"The score of {name} holds NaN or infinite values (float32).")
    if bool((vector < 0).any()) or not bool(vector.any()):
        raise UserError(f"The score of {name} must not be negative, and not 0 in every channel.")
    return vector.clamp_min(torch.finfo(torch.float32).tiny)  # as every score: 0 times infinity would be kept
