"""Weights that others change: what is computed from them follows, and what the configuration says of them is true."""

import copy
import pickle

import accelerate
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from nm_export.calibration.calibrate import calibrate
from nm_export.learning.trainable import trainable
from nm_export.modeling import NMSparseLinear
from nm_export.modeling.configuration_nm_sparse import SCHEME_DEFAULTS
from nm_export.onnx.pruned_inputs import pruned_inputs
from nm_export.torch_ops import prepare
from tests.tiny_models import dense_model, sparse_model, token_ids

K, O = 32, 24  # noqa: E741
SHIFTS = ("dynamic_mean", "dynamic_median", "static_scalar", "static_channel")


def linear(shift, pattern="8:8", **scheme):
    """A linear whose pattern keeps all: with and without pruning it computes the same, if its offset is right."""
    torch.manual_seed(0)
    module = NMSparseLinear(nn.Linear(K, O), SCHEME_DEFAULTS | {"pattern": pattern, "shift": shift, **scheme})
    if module.nm_shift is not None:
        module.nm_shift.copy_(torch.randn(module.nm_shift.shape) + 1)
    module.update_offset()
    return module.requires_grad_(False)


def assert_sparse_is_dense(module):
    x = torch.randn(2, 5, K, generator=torch.Generator().manual_seed(1)) + 2
    with torch.no_grad():
        torch.testing.assert_close(module(x), nn.functional.linear(x, module.weight, module.bias), rtol=1e-4, atol=1e-4)


def step(module):
    module.weight.requires_grad_()
    optimizer = torch.optim.AdamW([module.weight], lr=0.1)
    module(torch.randn(3, 2, K)).square().sum().backward()
    optimizer.step()
    module.weight.requires_grad_(False)


CHANGES = {
    "an optimizer's step": step,
    "new data": lambda m: setattr(m.weight, "data", torch.randn(O, K)),
    "data in place": lambda m: m.weight.data.add_(torch.randn(O, K)),
    "one row in place": lambda m: m.weight[7].mul_(-5),
    "another parameter": lambda m: setattr(m, "weight", nn.Parameter(torch.randn(O, K), requires_grad=False)),
    "weights loaded alone": lambda m: m.load_state_dict({"weight": torch.randn(O, K)}, strict=False),
    "float16 and back": lambda m: m.half().float(),
}


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("change", CHANGES)
def test_the_offset_follows_the_weight(change, shift):
    module = linear(shift)
    assert_sparse_is_dense(module)
    CHANGES[change](module)
    assert_sparse_is_dense(module)


@pytest.mark.parametrize("change", ["data in place", "one row in place", "another parameter"])
def test_a_state_dict_holds_the_offset_of_its_weight(change):
    module = linear("static_channel")
    CHANGES[change](module)
    saved = module.state_dict()
    torch.testing.assert_close(saved["nm_offset"], saved["weight"] @ saved["nm_shift"])


@pytest.mark.parametrize("change", [lambda s: s.add_(1), lambda s: s.data.add_(1)], ids=["counted", "past the count"])
def test_the_offset_follows_the_shift(change):
    module = linear("static_channel")
    assert_sparse_is_dense(module)
    change(module.nm_shift)
    assert_sparse_is_dense(module)


def test_a_new_linear_prunes_at_once():
    module = NMSparseLinear(nn.Linear(K, O), SCHEME_DEFAULTS | {"pattern": "8:8", "shift": "dynamic_mean"})
    assert not module.nm_offset.any()
    assert_sparse_is_dense(module)


def test_an_offset_that_is_right_keeps_its_bits():
    module = linear("dynamic_mean")
    exact = module.weight.double().sum(1)
    other = torch.nextafter(module.nm_offset, torch.where(exact > module.nm_offset, 1e9, -1e9))  # on its other side
    rounded_up = (other - exact).abs() <= 2.0**-24 * exact.abs()
    module.nm_offset = stored = torch.where(rounded_up, other, module.nm_offset)
    assert rounded_up.any()
    module._offset_of = None
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_sparse_is_dense(twin)
        assert torch.equal(twin.nm_offset, stored)
        assert torch.equal(twin.state_dict()["nm_offset"], stored)


def test_an_unchanged_linear_uses_the_stored_offset():
    module, x = linear("dynamic_mean", "4:8"), torch.randn(2, 3, K)
    with torch.inference_mode():
        values, e = module.prune(x)
        assert torch.equal(module(x), nn.functional.linear(values, module.weight, module.bias) + e * module.nm_offset)


@pytest.mark.parametrize("shift", SHIFTS)
def test_gradients_go_through_the_shift(shift):
    """Against autograd on the formula with the kept set fixed."""
    module = linear(shift, "4:8", output_scale=True)
    module.weight.requires_grad_()
    module.nm_offset.add_(9)  # not looked at
    x = torch.randn(2, 5, K).requires_grad_()
    if module.nm_shift is not None:
        module.nm_shift.requires_grad_()
    leaves = [t for t in (x, module.weight, module.nm_shift) if t is not None]
    kept = module.prune(x)[0] != 0
    e = {"dynamic_mean": x.mean(-1, True), "dynamic_median": x.median(-1, True).values}.get(shift, module.nm_shift)
    expected = torch.autograd.grad((torch.where(kept, x, e) @ module.weight.T).square().sum(), leaves)
    found = torch.autograd.grad((module(x) - module.bias).square().sum(), leaves)
    for gradient, right in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-3)


def test_a_raw_shift_has_the_gradient_that_trainable_gives():
    gradients = []
    x = torch.randn(2, 5, K)
    for raw in (True, False):
        module = linear("learned", "4:8")
        if raw:
            module.nm_shift.requires_grad_()
            module(x).square().sum().backward()
            gradients.append(module.nm_shift.grad)
        else:
            with trainable(module, {"linear": module}, ["shift"]) as leaves:
                module(x).square().sum().backward()
                gradients.append(leaves["linear.nm_shift"].grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("buffer", ["nm_score", "nm_offset"])
def test_gradients_that_do_not_exist_are_refused(buffer):
    module = linear("dynamic_mean", score="weight_norm")
    getattr(module, buffer).requires_grad_()
    with pytest.raises(ValueError, match=rf"linear\.{buffer} requires a gradient, and has none.*nm_export\.trainable"):
        module(torch.randn(1, 2, K))
    with torch.no_grad():
        module(torch.randn(1, 2, K))


@pytest.mark.parametrize("shift", SHIFTS)
def test_compiles_whole_and_follows_the_weight(shift):
    module = linear(shift, "4:8")
    x = torch.randn(2, 3, K)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))
        module.weight.data.add_(1)
        torch.testing.assert_close(compiled(x), module(x))
        program = torch.export.export(nn.Sequential(module), (x,)).module()
        torch.testing.assert_close(program(x), module(x))


def test_a_model_compiles_whole():
    model = sparse_model(shift="dynamic_mean", score="weight_norm")
    ids = token_ids(1, 4)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(compiled, model(input_ids=ids, use_cache=False).logits)


def test_tensors_without_numbers_are_left_alone():
    module = linear("static_channel")
    assert module.to("meta")(torch.randn(2, 3, K, device="meta")).shape == (2, 3, O)
    module.state_dict()
    with FakeTensorMode() as mode:
        fake = linear("dynamic_mean")
        assert fake(torch.randn(2, 3, K)).shape == (2, 3, O)
        fake.state_dict()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert linear("dynamic_mean")(mode.from_tensor(torch.randn(2, 3, K))).shape == (2, 3, O)


def test_a_linear_that_inference_made_runs_and_is_saved():
    with torch.inference_mode():
        module = linear("static_channel")
        assert_sparse_is_dense(module)
        module.weight.mul_(2)
        assert_sparse_is_dense(module)
    module.state_dict()


def test_inference_leaves_buffers_that_can_be_loaded_into():
    module, other = linear("dynamic_mean"), linear("dynamic_mean").state_dict()
    CHANGES["new data"](module)
    with torch.inference_mode():
        assert_sparse_is_dense(module)
    module.load_state_dict(other)
    assert_sparse_is_dense(module)


def test_offloaded_weights_and_their_offsets():
    model = sparse_model(pattern="8:8", shift="dynamic_mean")
    for module in model.nm_modules().values():
        module.nm_offset.fill_(3.0)
    accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)
    model.state_dict()
    with torch.no_grad():
        sparse = model(input_ids=token_ids()).logits
        with model.dense():
            torch.testing.assert_close(sparse, model(input_ids=token_ids()).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("write", ["data", "counted"])
def test_export_and_preparation_see_the_weights_as_they_are(write):
    model = sparse_model(shift="static_channel")
    for module in model.nm_modules().values():
        module.nm_shift.fill_(1.0)
    calibrate_free = pruned_inputs(model)
    module = model.model.layers[1].mlp.down_proj
    with torch.no_grad():
        (module.weight.data if write == "data" else module.weight)[0, 1] += 100  # one number
    changed = next(
        i for i in pruned_inputs(model) if i.linears[0].name == "model.layers[1].mlp.down_proj".replace("[1]", ".1")
    )
    before = next(i for i in calibrate_free if i.linears[0].name == changed.linears[0].name)
    assert changed.linears[0].bias[0] - before.linears[0].bias[0] == pytest.approx(100, rel=1e-3)
    prepare(model)
    assert_follows(module)


def assert_follows(module):
    torch.testing.assert_close(module.nm_offset, module.weight.detach() @ module.nm_shift, rtol=1e-4, atol=1e-4)


@pytest.fixture
def published(tmp_path):
    model = sparse_model("qwen2", pattern="8:8", shift="dynamic_mean")
    calibrate(model)
    model.save_pretrained(tmp_path / "published")
    return tmp_path / "published"


def reload(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def gap(model):
    with torch.no_grad():
        sparse = model(input_ids=token_ids()).logits
        with model.dense():
            dense = model(input_ids=token_ids()).logits
    return float((sparse - dense).abs().max() / dense.abs().max())


def train(model, parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    optimizer.step()


def test_a_trained_model_is_saved_with_its_offsets_and_says_what_differs(published, tmp_path):
    model = reload(published)
    assert model.config.sparsity["rewritten"] == []
    train(model, model.parameters())
    assert gap(model) < 1e-5
    model.save_pretrained(tmp_path / "trained")
    again = reload(tmp_path / "trained")
    assert gap(again) < 1e-5
    dense = dense_model("qwen2").state_dict()
    different = {name for name, tensor in again.state_dict().items() if name in dense and not tensor.equal(dense[name])}
    assert set(again.config.sparsity["rewritten"]) == different
    assert {"model.embed_tokens.weight", "model.norm.weight"} < different
    again.save_pretrained(tmp_path / "second")  # what differed once is not forgotten
    assert set(reload(tmp_path / "second").config.sparsity["rewritten"]) == different


@pytest.mark.parametrize("part", ["model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"])
def test_a_model_in_memory_says_which_tensors_training_has_changed(part, tmp_path):
    model = sparse_model("qwen2")
    train(model, [model.get_parameter(part)])
    copy.deepcopy(model).save_pretrained(tmp_path)
    assert reload(tmp_path).config.sparsity["rewritten"] == [part]


def test_weights_that_nobody_changes_are_not_called_rewritten(published, tmp_path):
    model = reload(published)
    pickle.loads(pickle.dumps(copy.deepcopy(model))).to(torch.bfloat16).save_pretrained(tmp_path)
    assert reload(tmp_path).config.sparsity["rewritten"] == []


def test_a_merged_adapter_is_part_of_what_the_model_computes(published, tmp_path):
    torch.manual_seed(0)
    targets = ["q_proj", "down_proj"]
    adapted = get_peft_model(reload(published), LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()
    with torch.no_grad():
        expected = adapted(input_ids=token_ids()).logits
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for model in (merged, reload(tmp_path / "merged")):
        assert gap(model) < 1e-5
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=token_ids()).logits, expected, rtol=1e-3, atol=1e-3)
        names = {
            f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")
        }
        assert set(model.config.sparsity["rewritten"]) == names
