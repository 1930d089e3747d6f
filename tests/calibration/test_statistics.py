"""Running sums against plain numpy, however the tokens arrive."""

import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nm_export.calibration import statistics as statistics_module
from nm_export.calibration.statistics import InputStatistics, collecting, measure
from nm_export.errors import UserError

EVERYTHING = ("median_sum", "square_sum", "maximum")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_tokens(count, channels, dtype=torch.float32):
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(channels)).mul(3).add(1).to(dtype)


def lower_medians(x):
    return np.sort(x, axis=-1)[:, (x.shape[-1] - 1) // 2]


def check(gathered, tokens):
    """Compare everything that was gathered with float64 numpy over all tokens at once."""
    x = tokens.double().numpy()
    assert gathered.tensors["tokens"].tolist() == [len(x)]
    np.testing.assert_allclose(gathered.channel_mean.numpy(), x.mean(axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gathered.mean_median.numpy(), [lower_medians(x).mean()], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gathered.channel_norm.numpy(), np.sqrt((x**2).sum(axis=0)), rtol=1e-12)
    np.testing.assert_array_equal(gathered.channel_maximum.numpy(), np.abs(x).max(axis=0))


@settings(max_examples=100, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 40), max_size=6).map(sorted),
    dtype=st.sampled_from(DTYPES),
    channels=st.integers(1, 9),
    elements=st.sampled_from([1, 7, 1 << 16]),
    compiled=st.booleans(),
)
def test_statistics_do_not_depend_on_how_tokens_arrive(cuts, dtype, channels, elements, compiled):
    x = random_tokens(40, channels, dtype)
    gathered = InputStatistics(channels, EVERYTHING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics_module, "_ELEMENTS", elements)
        if not compiled:
            patch.setattr(statistics_module, "_COMPILED", ())
        for begin, end in zip([0, *cuts], [*cuts, 40], strict=True):
            gathered.update(x[begin:end].unsqueeze(0))
    check(gathered, x)


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 30), channels=st.integers(1, 9))
def test_two_objects_together_have_seen_what_one_would_have(cut, channels):
    x = random_tokens(30, channels)
    one, other = (InputStatistics(channels, EVERYTHING) for _ in range(2))
    one.update(x[:cut])
    other.update(x[cut:])
    one.add(other.unpack(other.state()))
    check(one, x)


def test_one_token():
    x = torch.tensor([[3.0, -4.0, 0.0]])
    gathered = InputStatistics(3, EVERYTHING)
    gathered.update(x)
    assert gathered.channel_mean.tolist() == [3, -4, 0]
    assert gathered.mean_median.tolist() == [0]
    assert gathered.channel_norm.tolist() == gathered.channel_maximum.tolist() == [3, 4, 0]


def test_no_token():
    gathered = InputStatistics(3, EVERYTHING)
    gathered.update(torch.empty(2, 0, 3))
    assert gathered.channel_mean.tolist() == gathered.channel_maximum.tolist() == [0, 0, 0]
    assert gathered.mean_median.tolist() == [0]


def test_sums_are_float64():
    x = torch.full((1 << 12, 2), 0.1)
    gathered = InputStatistics(2, EVERYTHING)
    for _ in range(8):
        gathered.update(x)
    count, value = 8 << 12, float(x[0, 0])
    np.testing.assert_allclose(gathered.tensors["sum"].numpy(), count * value, rtol=1e-14)
    np.testing.assert_allclose(gathered.tensors["square_sum"].numpy(), count * value**2, rtol=1e-14)


def test_only_what_is_wanted_is_measured():
    gathered = InputStatistics(4, ["maximum"])
    gathered.update(torch.ones(2, 4))
    assert set(gathered.tensors) == {"tokens", "sum", "maximum"}
    assert set(measure(torch.ones(2, 4), ["median_sum"])) == {"median_sum"}


def test_statistics_keep_no_activation():
    gathered = InputStatistics(8, EVERYTHING)
    size = gathered.state().numel()
    seen = []
    for _ in range(3):
        x = torch.randn(2, 5, 8)
        gathered.update(x)
        seen.append(weakref.ref(x))
        del x
    assert [reference() for reference in seen] == [None] * 3
    assert gathered.state().numel() == size == 1 + 8 + 8 + 1 + 8


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.integers(1, 5),
    channels=st.integers(1, 700),
    dtype=st.sampled_from(DTYPES),
    values=st.sampled_from([[0.0], [-0.0, 0.0, 1e-40], [-3e38, 3e38], [float("inf"), -1.0, 2.0], None]),
    seed=st.integers(0, 9),
)
def test_the_compiled_median_is_numpys(tokens, channels, dtype, values, seed):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, channels, generator=random)
    if values is not None:
        x = torch.tensor(values)[torch.randint(len(values), x.shape, generator=random)]
    x = x.to(dtype)
    np.testing.assert_array_equal(statistics_module._lower_medians(x).numpy(), lower_medians(x.float().numpy()))


def test_measuring_needs_little_memory(monkeypatch):
    monkeypatch.setattr(statistics_module, "_COMPILED", ())
    x = torch.randn(1 << 15, 64)
    tracemalloc.start()  # NumPy's share; torch's chunks are of the same size
    measure(x, EVERYTHING)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 4


def test_modules_that_read_one_tensor_measure_it_once(monkeypatch):
    asked = []
    monkeypatch.setattr(
        statistics_module, "measure", lambda x, wanted: (asked.append(set(wanted)), measure(x, wanted))[1]
    )
    modules = {name: torch.nn.Linear(6, 2) for name in ("first", "second", "third")}
    gathered = {
        "first": InputStatistics(6, ["median_sum"]),
        "second": InputStatistics(6, ["square_sum", "median_sum"]),
        "third": InputStatistics(6, EVERYTHING),
    }
    batches = [random_tokens(10, 6), random_tokens(10, 6) * 2]
    own = [torch.randn(10, 6) for _ in batches]
    with collecting(gathered, modules):
        for shared, other in zip(batches, own, strict=True):
            modules["first"](shared)
            modules["second"](shared)
            modules["third"](other)
    everything = {"tokens", "sum", "median_sum", "square_sum", "maximum"}
    assert asked == [{"tokens", "sum", "median_sum"}, {"square_sum"}, everything] * 2
    for name, seen in {"first": batches, "second": batches, "third": own}.items():
        alone = InputStatistics(6, gathered[name].tensors.keys() - {"tokens", "sum"})
        for x in seen:
            alone.update(x)
        assert torch.equal(gathered[name].state(), alone.state())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_is_refused_by_name_and_hooks_are_removed(value, dtype):
    linear = torch.nn.Linear(4, 4, dtype=dtype)
    x = torch.zeros(1, 3, 4, dtype=dtype)
    x[0, 1, 2] = value
    with (
        pytest.raises(UserError, match=r"some\.name holds NaN or infinite"),
        collecting({"some.name": InputStatistics(4, EVERYTHING)}, {"some.name": linear}),
    ):
        linear(x)
    assert not linear._forward_pre_hooks
