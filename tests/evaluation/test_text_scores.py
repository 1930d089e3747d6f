"""Scores on windows against sums that are written out, token by token in double precision."""

import math
import statistics

import pytest
import torch

from nm_export.errors import UserError
from nm_export.evaluation import RememberedLogits, evaluate_text, perplexity, torch_logits
from nm_export.evaluation.estimate import Estimate, mean_estimate
from tests.tiny_models import ARCHITECTURES, VOCABULARY, dense_model, sparse_model, token_ids

WINDOWS = token_ids(samples=5, length=11)


def table_model(seed, scale=1.0, vocabulary=VOCABULARY):
    """Logits that depend on the current token only: float32 `[B, L, V]`."""
    table = scale * torch.randn(VOCABULARY, vocabulary, generator=torch.Generator().manual_seed(seed))
    return lambda ids: table[ids]


def distributions(logits, row):
    """Probabilities `[V]` before each token but the first, and that token."""
    exponentials = logits(row[None])[0, :-1].double().exp()
    return zip(exponentials / exponentials.sum(-1, keepdim=True), row[1:].tolist(), strict=True)


def naive(dense, other):
    """Per window: negative log-likelihood of both, KL and agreement."""
    results = []
    for row in WINDOWS:
        q, p = list(distributions(dense, row)), list(distributions(other, row))
        results.append(
            (
                statistics.fmean(-math.log(probabilities[token]) for probabilities, token in p),
                statistics.fmean(-math.log(probabilities[token]) for probabilities, token in q),
                statistics.fmean(float((a * (a / b).log()).sum()) for (a, _), (b, _) in zip(q, p, strict=True)),
                statistics.fmean(a.argmax() == b.argmax() for (a, _), (b, _) in zip(q, p, strict=True)),
            )
        )
    return [list(column) for column in zip(*results, strict=True)]


def standard_error(values):
    return statistics.stdev(values) / math.sqrt(len(values))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores(batch_size):
    dense, other = table_model(1), table_model(2, scale=0.5)
    scores = evaluate_text(other, dense, WINDOWS, batch_size=batch_size)
    nll, dense_nll, kl, agreement = naive(dense, other)
    assert (scores.windows, scores.scored_tokens) == (5, 50)
    perplexity_ = math.exp(statistics.fmean(nll))
    assert scores.perplexity.value == pytest.approx(perplexity_, rel=1e-5)
    assert scores.perplexity.stderr == pytest.approx(perplexity_ * standard_error(nll), rel=1e-4)
    assert scores.dense_perplexity.value == pytest.approx(math.exp(statistics.fmean(dense_nll)), rel=1e-5)
    differences = [a - b for a, b in zip(nll, dense_nll, strict=True)]
    ratio = math.exp(statistics.fmean(differences))
    assert scores.ratio.value == pytest.approx(ratio, rel=1e-5)
    assert scores.ratio.value == pytest.approx(scores.perplexity.value / scores.dense_perplexity.value)
    assert scores.ratio.stderr == pytest.approx(ratio * standard_error(differences), rel=1e-4)
    assert scores.kl.value == pytest.approx(statistics.fmean(kl), rel=1e-5)
    assert scores.kl.stderr == pytest.approx(standard_error(kl), rel=1e-4)
    assert scores.top1_agreement.value == pytest.approx(statistics.fmean(agreement))
    assert scores.top1_agreement.stderr == pytest.approx(standard_error(agreement))


def test_a_model_does_not_differ_from_itself():
    logits = torch_logits(dense_model())
    scores = evaluate_text(logits, logits, WINDOWS)
    assert scores.kl == Estimate(0.0, 0.0)
    assert scores.top1_agreement == Estimate(1.0, 0.0)
    assert scores.ratio == Estimate(1.0, 0.0)
    assert scores.perplexity == scores.dense_perplexity


def test_batches_differ_by_rounding_only():
    model, dense = torch_logits(sparse_model()), torch_logits(dense_model())
    one, four = (evaluate_text(model, dense, WINDOWS, batch_size=size) for size in (1, 4))
    assert one.perplexity.value == pytest.approx(four.perplexity.value, rel=1e-4)
    assert one.kl.value == pytest.approx(four.kl.value, rel=1e-3)
    assert one.kl.value > 0.01, "the test would not notice a difference"


def test_alone_it_is_the_perplexity_of_the_pipeline():
    model = torch_logits(dense_model())
    scores = evaluate_text(model, None, WINDOWS)
    assert scores.perplexity.value == pytest.approx(perplexity(model, WINDOWS), rel=1e-6)
    assert (scores.dense_perplexity, scores.ratio, scores.kl, scores.top1_agreement) == (None,) * 4


def test_one_window_has_no_standard_error():
    scores = evaluate_text(table_model(1), table_model(2), WINDOWS[:1])
    assert scores.perplexity.stderr is None
    assert scores.kl.stderr is None
    assert scores.to_dict()["kl"] == {"value": scores.kl.value, "stderr": None}


def test_nan_is_no_number_and_no_agreement():
    def broken(ids):
        return torch.full((*ids.shape, VOCABULARY), torch.nan)

    scores = evaluate_text(broken, table_model(1), WINDOWS)
    assert math.isnan(scores.kl.value)
    assert scores.to_dict()["perplexity"] == {"value": None, "stderr": None}


def test_other_vocabularies_are_refused():
    with pytest.raises(UserError, match=r"96 tokens .* 90"):
        evaluate_text(table_model(1), table_model(1, vocabulary=90), WINDOWS)


def test_mean_estimate():
    assert mean_estimate([1.0, 2.0, 6.0]) == Estimate(3.0, pytest.approx(math.sqrt(7 / 3)))
    assert mean_estimate([4.0]) == Estimate(4.0)
    with pytest.raises(ValueError, match="no values"):
        mean_estimate([])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_remembered_logits_are_the_models_own(architecture):
    model = dense_model(architecture)
    remembered, calls = RememberedLogits(model), []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = torch_logits(model)(WINDOWS)
    first, second = remembered(WINDOWS), remembered(WINDOWS)
    hook.remove()
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert len(calls) == 2, "once to compare, once for both"
    assert torch.equal(remembered(WINDOWS + 1 - 1), expected)
    assert not torch.equal(remembered(WINDOWS.flip(0)), expected)


def test_logits_that_are_capped_are_computed_every_time():
    model = dense_model("llama")
    model.register_forward_hook(lambda _, __, output: output.__setitem__("logits", output.logits.tanh()))
    remembered = RememberedLogits(model)
    expected = torch_logits(model)(WINDOWS)
    assert torch.equal(remembered(WINDOWS), expected)
    assert torch.equal(remembered(WINDOWS), expected)
