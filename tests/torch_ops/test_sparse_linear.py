"""The sparse product of PyTorch against its dense one, and what stores weights for it."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from nm_export import torch_ops
from nm_export.modeling import NMSparseForCausalLM, modeling_nm_sparse
from tests.tiny_models import ARCHITECTURES, dense_model, sparse_model

assert torch_ops.register()
SPARSE_LINEAR = torch.ops.nm_export.sparse_linear
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def by_channels(weight: torch.Tensor) -> torch.Tensor:
    """The same [O, K], stored as [K, O]."""
    return weight.t().contiguous().t()


def pruned(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(x.abs() < 0.6, 0.0, x)


def exact(*shape: int, seed: int = 0) -> torch.Tensor:
    """Small integers, whose sums every type of these tests holds exactly, half of them zeros."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator) * torch.randint(0, 2, shape, generator=generator)


@pytest.fixture
def library_calls(monkeypatch):
    """How often the compiled product is called."""
    calls = []

    def at_once(run, arguments, original=torch_ops._at_once):
        calls.append(len(arguments))
        original(run, arguments)

    monkeypatch.setattr(torch_ops, "_at_once", at_once)
    return calls


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (1, 64), (1, 1, 130), (3, 5, 96), (40, 65), (0, 8)])
@pytest.mark.parametrize("columns", [1, 15, 128, 333])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_the_dense_product(library_calls, dtype, shape, columns, with_bias):
    values, weight = exact(*shape).to(dtype), exact(columns, shape[-1], seed=1).to(dtype)
    bias = exact(columns, seed=2).to(dtype) if with_bias else None
    y = SPARSE_LINEAR(values, by_channels(weight), bias)
    expected = F.linear(values.double(), weight.double(), None if bias is None else bias.double())
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    assert torch.equal(y.double(), expected)
    assert library_calls == [1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_rounds_once(dtype):
    values, weight = pruned(4, 512).to(dtype), torch.randn(96, 512).to(dtype)
    y = SPARSE_LINEAR(values, by_channels(weight), None)
    expected = F.linear(values.double(), weight.double()).to(dtype)
    torch.testing.assert_close(y, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


def test_ordinary_weights_are_multiplied_by_pytorch(library_calls):
    values, weight = pruned(2, 64), torch.randn(48, 64)
    assert torch.equal(SPARSE_LINEAR(values, weight, None), F.linear(values, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert SPARSE_LINEAR(values, weight, None).dtype == torch.float32
    assert library_calls == []


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("tokens", [1, 4, 20])
def test_threads_change_nothing(library_calls, threads, tokens):
    values, weight = exact(tokens, 1024).float(), by_channels(exact(3000, 1024, seed=1).float())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = SPARSE_LINEAR(values, weight, None)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(y, F.linear(values, weight))
    assert library_calls == [threads]


def test_small_products_are_not_shared_among_threads(library_calls, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    SPARSE_LINEAR(pruned(1, 64), by_channels(torch.randn(48, 64)), None)
    assert library_calls == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pytorchs_rules_for_operators_hold(dtype):
    weight, bias = torch.randn(24, 32).to(dtype), torch.randn(24).to(dtype)
    torch.library.opcheck(SPARSE_LINEAR, (pruned(2, 3, 32).to(dtype), by_channels(weight), bias))
    torch.library.opcheck(SPARSE_LINEAR, (pruned(32, 2).to(dtype).t(), by_channels(weight), None))
    torch.library.opcheck(SPARSE_LINEAR, (pruned(40, 32).to(dtype), weight, bias))


def test_shapes_are_known_without_data():
    values, weight = torch.empty(2, 0, 32, device="meta"), torch.empty(24, 32, device="meta")
    y = SPARSE_LINEAR(values.half(), weight.half(), None)
    assert (y.shape, y.dtype, y.device.type) == ((2, 0, 24), torch.float16, "meta")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((torch.zeros(2, 8), torch.zeros(4, 7), None), r"\[2, 8\] and weight \[4, 7\]"),
        ((torch.zeros(2, 0), torch.zeros(4, 0), None), "with K > 0"),
        ((torch.tensor(1.0), torch.zeros(4, 1), None), "K > 0"),
        ((torch.zeros(2, 8), torch.zeros(8), None), r"weight \[8\]"),
        ((torch.zeros(2, 8), torch.zeros(4, 8), torch.zeros(3)), r"bias has shape \[3\]; it must be \[4\]"),
        ((torch.zeros(2, 8), torch.zeros(4, 8).half(), None), "must be one type"),
        ((torch.zeros(2, 8).double(), torch.zeros(4, 8).double(), None), "must be one type"),
        ((torch.zeros(2, 8), torch.zeros(4, 8), torch.zeros(4).half()), "must be one type"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        SPARSE_LINEAR(*arguments)


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return sparse_model(request.param, pattern="8:16")


def test_a_prepared_model_computes_the_same(model, library_calls):
    plain = copy.deepcopy(model)
    assert torch_ops.prepare(model) == len(model.nm_modules()) > 0
    assert torch_ops.prepare(model) == len(model.nm_modules())
    for name, module in model.nm_modules().items():
        assert module.weight.t().is_contiguous()
        assert torch.equal(module.weight, plain.get_submodule(name).weight)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        library_calls.clear()
        logits = model(ids).logits
        assert len(library_calls) >= 2 * len(model.nm_modules())  # selection and product
        torch.testing.assert_close(logits, plain(ids).logits, rtol=1e-3, atol=1e-3)
    arguments = {"do_sample": False, "max_new_tokens": 12}
    assert torch.equal(model.generate(ids, **arguments), plain.generate(ids, **arguments))


def test_a_prepared_model_saves_the_same_bytes(tmp_path, model):
    model.save_pretrained(tmp_path / "before")
    torch_ops.prepare(model)
    for name, one in {
        "after": model,
        "copy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
    }.items():
        one.save_pretrained(tmp_path / name)
        for file in ("model.safetensors", "config.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "before" / file).read_bytes()


WITHOUT_NM_EXPORT = """
import sys
sys.modules["nm_export"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, local_files_only=True)
ids = torch.tensor([[5, 6, 7, 8]])
tokens = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
print(getattr(torch.ops.nm_export, "sparse_linear", None), tokens.tolist())
"""


def test_without_the_package_a_prepared_model_says_the_same(tmp_path):
    model = sparse_model()
    assert torch_ops.prepare(model)
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_NM_EXPORT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert result.stdout.strip() == f"None {tokens.tolist()}", result.stderr


def test_a_prepared_model_trains(model):
    plain = copy.deepcopy(model)
    torch_ops.prepare(model)
    ids = torch.tensor([[5, 6, 7, 8]])
    for one in (model, plain):
        one(ids, labels=ids).loss.backward()
    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-3, atol=1e-5)


def test_what_cannot_gain_is_left_as_it_is(monkeypatch):
    assert torch_ops.prepare(torch.nn.Linear(4, 4)) == 0
    assert torch_ops.prepare(sparse_model(pattern="12:16")) == 0
    assert torch_ops.prepare(sparse_model(pattern="8:16", phase="prefill")) == 0
    assert torch_ops.prepare(sparse_model(pattern="8:16", phase="decode")) == 0
    scheme = sparse_model(pattern="8:16").config.sparsity["schemes"][0]
    tied = NMSparseForCausalLM.from_dense(dense_model(), {"version": 1, "schemes": [scheme | {"modules": ["lm_head"]}]})
    assert tied.nm_modules()["lm_head"].weight is tied.get_input_embeddings().weight
    assert torch_ops.prepare(tied) == 0
    assert tied.get_input_embeddings().weight.is_contiguous()
    small = sparse_model(pattern="8:16")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 2)
        assert torch_ops.prepare(small) == 0
    monkeypatch.setattr(torch_ops, "register", lambda: False)
    assert torch_ops.prepare(small) == 0


def test_the_published_code_uses_it_only_where_it_may(library_calls):
    values, weight = pruned(1, 64), by_channels(torch.randn(48, 64))
    linear = modeling_nm_sparse.linear
    expected = F.linear(values, weight)
    assert linear(values, weight.contiguous(), None).equal(F.linear(values, weight.contiguous()))
    with modeling_nm_sparse.plain_torch():
        assert linear(values, weight, None).equal(expected)
    assert linear(values, weight.clone().requires_grad_(), None).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(values.bfloat16(), weight, None).dtype == torch.bfloat16
    assert library_calls == []
    torch.testing.assert_close(linear(values, weight, None), expected)
    assert library_calls == [1]
