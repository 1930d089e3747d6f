"""Channel scores against their formulas in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nm_export.calibration.quantiles import exact_quantiles
from nm_export.calibration.scores import amber_score, clact_score, smoothquant_score, weight_norm_score

TINY = torch.finfo(torch.float32).tiny


def weights(*rows, channels=8, scale=1.0):
    generator = torch.Generator().manual_seed(sum(rows))
    return [torch.randn(count, channels, generator=generator) * scale + 0.1 for count in rows]


def scaled(score):
    return score / score.mean()


def standardised(weight):
    w = weight.double().numpy()
    low, high = np.quantile(w, [0.005, 0.995])
    inliers = w[(w >= low) & (w <= high)]
    return (w - inliers.mean()) / inliers.std()


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    levels=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_quantiles_are_numpys(values, levels):
    expected = np.quantile(np.array(values, dtype=np.float64), levels)
    np.testing.assert_allclose(exact_quantiles(torch.tensor(values), levels), expected, rtol=1e-9, atol=1e-9)


def test_quantiles_of_more_elements_than_torch_takes():
    count = (1 << 24) + 6
    values = torch.arange(count, dtype=torch.float32).flip(0).reshape(2, -1)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values.flatten(), 0.5)
    # whole float32 numbers are exact up to 2^24, the last six are rounded
    np.testing.assert_allclose(exact_quantiles(values, [0.25, 0.5]), [(count - 1) / 4, (count - 1) / 2], rtol=1e-12)


@pytest.mark.parametrize("rows", [(40,), (40, 24, 8), (3000, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_amber_is_the_norm_of_the_standardised_columns(rows, dtype):
    stacked = [weight.to(dtype) for weight in weights(*rows)]
    stacked[0] *= 50  # each weight is standardised by itself: its scale must not show
    norms = np.sqrt((np.concatenate([standardised(weight) for weight in stacked]) ** 2).sum(axis=0))
    np.testing.assert_allclose(amber_score(stacked).numpy(), scaled(norms), rtol=1e-6)


def test_amber_ignores_outliers_in_mean_and_deviation():
    weight = weights(64, channels=16)[0]
    hit = weight.clone()
    hit[5, 3] = 1e4
    other_columns = torch.arange(16) != 3
    before, after = (amber_score([w])[other_columns] for w in (weight, hit))
    torch.testing.assert_close(after / after.mean(), before / before.mean(), rtol=0.02, atol=0)


def test_amber_of_a_weight_without_spread_is_flat():
    assert amber_score([torch.full((4, 8), 0.5)]).tolist() == [1.0] * 8


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_weight_norms(exponent):
    stacked = weights(3000, 5)
    norms = np.linalg.norm(torch.cat(stacked).double().numpy(), axis=0) ** exponent
    np.testing.assert_allclose(weight_norm_score(stacked, exponent).numpy(), scaled(norms), rtol=1e-6)


def test_clact_is_proportional_to_the_norms():
    norms = torch.tensor([1.0, 4.0, 0.0, 3.0], dtype=torch.float64)
    assert clact_score(norms).tolist() == [0.5, 2.0, TINY, 1.5]


@pytest.mark.parametrize("rows", [(12,), (12, 20)])
def test_smoothquant_selects_as_the_rescaled_input_does(rows):
    stacked = weights(*rows)
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)).double() * torch.arange(1, 9)
    s = np.sqrt(np.abs(x.numpy()).max(axis=0) / np.abs(torch.cat(stacked).double().numpy()).max(axis=0))
    score = smoothquant_score(x.abs().amax(dim=0), stacked)
    np.testing.assert_allclose(score.numpy(), scaled(1 / s), rtol=1e-6)
    order = (x.abs() * score).argsort(dim=-1)
    assert torch.equal(order, (x / torch.from_numpy(s)).abs().argsort(dim=-1))


def test_smoothquant_without_an_input_or_a_weight():
    weight = torch.ones(3, 4)
    weight[:, 1] = 0
    score = smoothquant_score(torch.tensor([1.0, 1.0, 0.0, 4.0], dtype=torch.float64), [weight])
    # 1, nobody reads it, no input was ever seen (the mean of the others), 1/2
    expected = scaled(np.array([1, 0, 0.5, 0.5]))
    np.testing.assert_allclose(score.numpy(), np.maximum(expected, TINY), rtol=1e-6)


@pytest.mark.parametrize(
    "score",
    [
        lambda weight: weight_norm_score([weight], 1.0),
        lambda weight: clact_score(weight.double().norm(dim=0)),
        lambda weight: smoothquant_score(weight.double().abs().amax(dim=0), [weight]),
        lambda weight: amber_score([weight]),
    ],
)
@pytest.mark.parametrize("dead", [[3], list(range(8))])
def test_scores_are_positive_float32_of_mean_one(score, dead):
    weight = weights(6)[0]
    weight[:, dead] = 0
    result = score(weight)
    assert result.dtype == torch.float32
    assert result.shape == (8,)
    assert (result > 0).all()
    assert result.isfinite().all()
    assert result.mean().item() == pytest.approx(1, rel=1e-6)
