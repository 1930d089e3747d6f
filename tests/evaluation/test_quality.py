"""Perplexity and divergence against sums that are written out."""

import math

import pytest
import torch

from nm_export.evaluation import divergence, perplexity, torch_logits
from tests.tiny_models import VOCABULARY, dense_model, token_ids

WINDOWS = token_ids(samples=3, length=9)


def table_model(seed, scale=1.0):
    """Logits that depend on the current token only: float32 `[1, T, V]`."""
    table = scale * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return lambda ids: table[ids]


def naive_terms(logits):
    """Every predicted token: probabilities `[V]` and the token that came."""
    for row in WINDOWS:
        scores = logits(row[None])[0].double()
        for position in range(len(row) - 1):
            exponentials = scores[position].exp()
            yield exponentials / exponentials.sum(), int(row[position + 1])


def test_perplexity():
    model = table_model(1)
    nll = [-math.log(p[token]) for p, token in naive_terms(model)]
    assert perplexity(model, WINDOWS) == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-6)


def test_perplexity_of_ignorance_is_the_vocabulary():
    assert perplexity(lambda ids: torch.zeros(*ids.shape, VOCABULARY), WINDOWS) == pytest.approx(VOCABULARY, rel=1e-6)


def test_divergence():
    reference, other = table_model(1), table_model(2, scale=0.5)
    results = divergence(reference, {"other": other}, WINDOWS)
    pairs = list(zip(naive_terms(reference), naive_terms(other), strict=True))
    count = len(pairs)
    kl = sum(float((p * (p / q).log()).sum()) for (p, _), (q, _) in pairs) / count
    agreement = sum(int(p.argmax() == q.argmax()) for (p, _), (q, _) in pairs) / count
    difference = sum(abs(math.log(p[token]) - math.log(q[token])) for (p, token), (q, _) in pairs) / count
    result = results["other"]
    assert result.perplexity == pytest.approx(perplexity(other, WINDOWS), rel=1e-6)
    assert (result.kl, result.top1_agreement) == (pytest.approx(kl, rel=1e-5), pytest.approx(agreement))
    assert result.nll_difference == pytest.approx(difference, rel=1e-5)
    same = results["reference"]
    assert (same.kl, same.top1_agreement, same.nll_difference) == (0, 1, 0)


def test_a_nan_is_not_taken_for_agreement():
    def broken(ids):
        return torch.full((*ids.shape, VOCABULARY), torch.nan)

    result = divergence(table_model(1), {"broken": broken}, WINDOWS)["broken"]
    assert not result.kl < 1
    assert math.isnan(result.nll_difference)


def test_torch_logits_is_the_models_forward():
    model = dense_model()
    with torch.no_grad():
        expected = model(WINDOWS).logits
    assert torch.equal(torch_logits(model)(WINDOWS), expected)
