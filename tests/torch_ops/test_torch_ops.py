"""The operators of PyTorch against the specification, and PyTorch's own rules for operators."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nm_export import torch_ops
from nm_export.errors import UserError
from nm_export.modeling import NMSparseLinear, modeling_nm_sparse, nm_topk
from nm_export.modeling.configuration_nm_sparse import SCHEME_DEFAULTS
from nm_export.modeling.modeling_nm_sparse import keep_mask, plain_torch
from tests.kernels import reference
from tests.kernels.cases import assert_follows_specification, cases

assert torch_ops.register()
NM_TOPK, KEEP_MASK = torch.ops.nm_export.nm_topk, torch.ops.nm_export.keep_mask
SPECIAL = torch.tensor([0.0, float("inf"), float("nan"), 1e-45, 3e-45, 1.0, 2.0])


def to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def plain_keep_mask(scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """What a stable sort chooses."""
    groups = scores.unflatten(-1, (scores.shape[-1] // m, m))
    best = groups.sort(dim=-1, descending=True, stable=True).indices[..., :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True).reshape(scores.shape)


@settings(max_examples=400, deadline=None)
@given(case=cases(), without_score=st.booleans(), shift_form=st.sampled_from(["full", "one", "none"]))
def test_nm_topk_follows_the_specification(case, without_score, shift_form):
    x, score, shift, attributes = case
    pruned = reference.is_pruned(x.shape, attributes.pop("phase"))
    del attributes["strided"]  # the caller lays the channels out
    if without_score:
        score = np.ones_like(score)
    if shift_form != "full":
        shift = np.full_like(shift, 0 if shift_form == "none" else shift[0])
    fed_shift = {"full": shift, "one": shift[:1], "none": None}[shift_form]
    actual = NM_TOPK(
        to_torch(x),
        None if without_score else to_torch(score),
        None if fed_shift is None else to_torch(fed_shift),
        attributes["n"],
        attributes["m"],
        attributes["shift_mode"],
        bool(attributes["variance_correction"]),
        pruned,
    )
    if not pruned:
        attributes |= {"n": attributes["m"]}
    assert_follows_specification([to_numpy(result) for result in actual], x, score, shift, attributes)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_keep_mask_is_what_a_stable_sort_chooses(data):
    m = data.draw(st.one_of(st.integers(1, 64), st.integers(65, 1600)))
    n = data.draw(st.integers(1, m))
    shape = (
        *data.draw(st.sampled_from([(), (0,), (1,), (3,), (2, 3)])),
        m * data.draw(st.integers(1, 40 if m <= 64 else 2)),
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    scores = SPECIAL[torch.randint(0, data.draw(st.integers(1, len(SPECIAL))), shape, generator=generator)]
    if data.draw(st.booleans()):
        scores = torch.where(scores == 1, torch.rand(shape, generator=generator), scores)
    mask = KEEP_MASK(scores, n, m)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, plain_keep_mask(scores, n, m))
    for row, kept in zip(scores.reshape(-1, shape[-1])[:2], mask.reshape(-1, shape[-1]), strict=False):
        assert kept.tolist() == reference.keep_mask(row.numpy(), n, m).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shift_mode", [0, 1, 2])
@pytest.mark.parametrize("variance_correction", [False, True])
def test_the_published_code_computes_the_same(dtype, shift_mode, variance_correction):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 96, generator=generator).to(dtype)
    score = torch.rand(96, generator=generator) + 0.5
    shift = torch.randn(96, generator=generator) if shift_mode == 0 else None
    actual = NM_TOPK(x, score, shift, 8, 16, shift_mode, variance_correction, True)
    with torch.enable_grad():  # under autograd the published code computes everything but the choice itself
        expected = modeling_nm_sparse.nm_topk(
            x.clone().requires_grad_(),
            score,
            shift,
            n=8,
            m=16,
            shift_mode=shift_mode,
            variance_correction=variance_correction,
        )
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other.detach(), rtol=0 if dtype == torch.float32 else 1e-2, atol=1e-6)
        assert torch.equal(one != 0, other != 0)


def test_inputs_need_not_be_contiguous():
    x = torch.randn(32, 7, 5).permute(2, 1, 0)
    score, shift = (torch.rand(64) + 0.5)[::2], torch.randn(32, 2)[:, 1]
    before = x.clone()
    values, _ = NM_TOPK(x, score, shift, 2, 4, 0, False, True)
    expected, _ = NM_TOPK(x.contiguous(), score.contiguous(), shift.contiguous(), 2, 4, 0, False, True)
    assert torch.equal(values, expected)
    assert torch.equal(x, before)
    assert torch.equal(KEEP_MASK(x.abs(), 2, 4), KEEP_MASK(x.abs().contiguous(), 2, 4))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads):
    """Enough rows that every thread gets some, in numbers that do not divide evenly."""
    x = torch.randn(1021, 400, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        values, token_shift = NM_TOPK(x, None, None, 8, 16, 2, True, True)
        mask = KEEP_MASK(x.abs(), 8, 16)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(mask, plain_keep_mask(x.abs(), 8, 16))
    for row in (0, 340, 341, 510, 511, 1020):
        one_value, one_shift = NM_TOPK(x[row], None, None, 8, 16, 2, True, True)
        assert torch.equal(values[row], one_value)
        assert torch.equal(token_shift[row], one_shift)


def test_several_callers_at_once():
    inputs = [torch.randn(600, 512, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda x: KEEP_MASK(x.abs(), 8, 16), inputs))
    for x, mask in zip(inputs, masks, strict=True):
        assert torch.equal(mask, plain_keep_mask(x.abs(), 8, 16))


def test_a_host_that_flushes_subnormals_gets_the_specified_choice():
    scores = torch.tensor([1e-45, 2e-45, 3e-45, 4e-45])
    try:
        torch.set_flush_denormal(True)
        mask = KEEP_MASK(scores, 2, 4)
        values, _ = NM_TOPK(scores, None, None, 2, 4, 0, False, True)
    finally:
        torch.set_flush_denormal(False)
    assert mask.tolist() == [False, False, True, True]
    assert torch.equal(values, scores * mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pytorchs_rules_for_operators_hold(dtype):
    x = torch.randn(2, 3, 32).to(dtype)
    score, shift = torch.rand(32) + 0.5, torch.zeros(1)
    torch.library.opcheck(NM_TOPK, (x, score, shift, 2, 4, 1, True, True))
    torch.library.opcheck(NM_TOPK, (x.transpose(0, 1), None, None, 2, 4, 0, False, False))
    torch.library.opcheck(KEEP_MASK, (x.float().abs(), 2, 4))


def test_shapes_are_known_without_data():
    x = torch.empty(0, 3, 32, dtype=torch.float16, device="meta")
    values, token_shift = NM_TOPK(x, None, None, 2, 4, 1, False, True)
    assert (values.shape, values.dtype, values.device.type) == (x.shape, torch.float16, "meta")
    assert (token_shift.shape, token_shift.dtype) == ((0, 3, 1), torch.float32)
    assert KEEP_MASK(x.float(), 2, 4).dtype == torch.bool


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: NM_TOPK(torch.zeros(2, 30), None, None, 2, 4, 0, False, True), "that 4 divides, not 30"),
        (lambda: NM_TOPK(torch.zeros(2, 0), None, None, 2, 4, 0, False, True), "that 4 divides, not 0"),
        (lambda: NM_TOPK(torch.tensor(1.0), None, None, 2, 4, 0, False, True), "that 4 divides, not 0"),
        (lambda: NM_TOPK(torch.zeros(2, 8), None, None, 5, 4, 0, False, True), "5:4 is no pattern"),
        (lambda: NM_TOPK(torch.zeros(2, 8), None, None, 0, 4, 0, False, True), "0:4 is no pattern"),
        (lambda: NM_TOPK(torch.zeros(2, 8), None, None, 2, 4, 3, False, True), "shift_mode is 3"),
        (lambda: NM_TOPK(torch.zeros(2, 8).double(), None, None, 2, 4, 0, False, True), "x is torch.float64"),
        (lambda: NM_TOPK(torch.zeros(2, 8), torch.ones(1), None, 2, 4, 0, False, True), r"score is .*\[1\]"),
        (lambda: NM_TOPK(torch.zeros(2, 8), None, torch.ones(2), 2, 4, 0, False, True), r"shift is .*\[2\]"),
        (
            lambda: NM_TOPK(torch.zeros(2, 8), torch.ones(8).half(), None, 2, 4, 0, False, True),
            "score is torch.float16",
        ),
        (lambda: KEEP_MASK(torch.zeros(2, 8).half(), 2, 4), "scores are torch.float16"),
        (lambda: KEEP_MASK(torch.zeros(2, 6), 2, 4), "that 4 divides, not 6"),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


IN_A_FRESH_PROCESS = """
import os
import torch
from nm_export import torch_ops
from nm_export.errors import UserError

def is_there():
    return getattr(torch.ops.nm_export, "nm_topk", None) is not None

def refused(name, value):
    before = dict(os.environ)
    os.environ[name] = value
    answer = torch_ops.register()
    torch_ops.register.cache_clear()
    os.environ.clear()
    os.environ.update(before)
    return not answer and not is_there()

assert not is_there()
assert refused("NM_EXPORT_TORCH_KERNELS", "0")
assert refused("NM_EXPORT_OPS_LIBRARY", os.devnull)
assert torch_ops.register() and torch_ops.register() and is_there()

torch.set_num_threads(2)
scores = torch.rand(600, 512)
expected = torch.ops.nm_export.keep_mask(scores, 8, 16)
if hasattr(os, "fork"):  # the threads of the parent are not in the child
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(torch.ops.nm_export.keep_mask(scores, 8, 16), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
print("done")
"""


def test_registration_and_forks_in_a_fresh_process():
    result = subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "done", result.stderr


@pytest.mark.parametrize(("name", "value"), [("nm_export_c_api_version", 99), ("nm_export_keep_mask", 3)])
def test_a_library_that_does_not_fit_is_not_used(monkeypatch, name, value):
    """Another version of the interface; an instruction set that cannot be used."""

    class Library:
        def __getattr__(self, attribute):
            return lambda *arguments: value if attribute == name else {"nm_export_c_api_version": 2}.get(attribute, 0)

    monkeypatch.setattr(torch_ops, "load_library", Library)
    with pytest.raises(UserError, match="operator library"):
        torch_ops._library.__wrapped__()


def test_a_library_without_the_interface_is_not_used(monkeypatch):
    monkeypatch.setattr(torch_ops, "load_library", object)
    with pytest.raises(UserError, match="too old"):
        torch_ops._library.__wrapped__()


def test_a_failure_inside_the_library_is_reported(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(RuntimeError, match="out of memory"):
        torch_ops._over_rows(4, 1 << 17, lambda first, rows: 2 if first else 0)


def test_types_that_the_operators_do_not_take_are_computed_by_torch():
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    scheme = SCHEME_DEFAULTS | {"pattern": "8:16", "shift": "dynamic_mean", "score": "weight_norm", "residual_rank": 2}
    module = NMSparseLinear(torch.nn.Linear(32, 8), scheme).double().requires_grad_(False)
    module.weight.data = module.weight.data.t().contiguous().t()  # as prepare() leaves it
    with plain_torch():
        expected = module(x)
    assert module(x).dtype == torch.float64
    assert torch.equal(module(x), expected)
    scores = torch.rand(4, 32, dtype=torch.float64)
    with plain_torch():
        kept = keep_mask(scores, 8, 16)
    assert torch.equal(keep_mask(scores, 8, 16), kept)
    assert nm_topk(x.float(), torch.ones(32).double(), None, n=8, m=16)[0].dtype == torch.float32
