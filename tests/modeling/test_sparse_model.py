"""The published model classes: everything that a transformers model can do, a sparse one can."""

import copy
import pickle
import shutil

import accelerate
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPTNeoXConfig, LlamaForCausalLM

from nm_export.modeling import NMSparseForCausalLM, NMSparseLinear
from nm_export.plan import make_plan
from tests.tiny_models import ARCHITECTURES, dense_model, recipe, sparse_model, token_ids

RICH = {"score": "weight_norm", "shift": "dynamic_mean", "variance_correction": True}


@pytest.fixture
def published(tmp_path, request):
    """A saved sparse model and the folder it lies in."""
    model = sparse_model(getattr(request, "param", "llama"), **RICH)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def logits(model, ids=None, **kwargs):
    with torch.no_grad():
        return model(input_ids=token_ids() if ids is None else ids, **kwargs).logits


def reload(folder, **kwargs):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **kwargs).eval()


@pytest.mark.parametrize("published", ARCHITECTURES, indirect=True)
def test_reloads_with_its_own_code_to_the_same_bits(published):
    model, folder = published
    again = reload(folder)
    assert type(again).__module__.startswith("transformers_modules.")
    assert torch.equal(logits(again), logits(model))
    headless = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        expected = model.base_model(input_ids=token_ids()).last_hidden_state
        assert torch.equal(headless(input_ids=token_ids()).last_hidden_state, expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_the_base_models_and_off_means_off(architecture):
    dense = dense_model(architecture)
    model = sparse_model(architecture, **RICH)
    new = {name for name in model.state_dict() if name.rpartition(".")[2].startswith("nm_")}
    assert set(model.state_dict()) - new == set(dense.state_dict())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in dense.state_dict().items())
    assert isinstance(model, type(dense))
    assert not torch.equal(logits(model), logits(dense))
    with model.dense():
        assert torch.equal(logits(model), logits(dense))
    model.set_sparsity(False)
    assert torch.equal(logits(model), logits(dense))


def test_becoming_sparse_copies_no_weight():
    dense = dense_model()
    pointers = {name: parameter.data_ptr() for name, parameter in dense.named_parameters()}
    model = NMSparseForCausalLM.from_dense(dense, sparse_model().config.sparsity)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == pointers


@pytest.mark.parametrize("published", ARCHITECTURES, indirect=True)
def test_generates(published):
    model = reload(published[1])
    ids = token_ids(1, 5)
    greedy = model.generate(ids, do_sample=False, max_new_tokens=8, min_new_tokens=8)
    no_cache = model.generate(ids, do_sample=False, max_new_tokens=8, min_new_tokens=8, use_cache=False)
    assert greedy.shape == (1, 13)
    assert torch.equal(greedy, no_cache)
    assert model.generate(ids, num_beams=3, do_sample=False, max_new_tokens=4, min_new_tokens=4).shape == (1, 9)
    torch.manual_seed(0)
    assert model.generate(ids, do_sample=True, max_new_tokens=4, min_new_tokens=4).shape == (1, 9)


def test_left_padding_changes_nothing(published):
    model, _ = published
    short, long = token_ids(1, 5, seed=1), token_ids(1, 9, seed=2)
    batch = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], dim=1), long])
    mask = (batch != 0).long()
    together = model.generate(batch, attention_mask=mask, do_sample=False, max_new_tokens=6, min_new_tokens=6)
    for row, ids in enumerate((short, long)):
        alone = model.generate(ids, do_sample=False, max_new_tokens=6, min_new_tokens=6)
        assert torch.equal(together[row, 9:], alone[0, ids.shape[1] :])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reloads_in_another_dtype_with_float32_parameters(published, dtype):
    model = reload(published[1], dtype=dtype)
    assert model.dtype == dtype
    parameters = [tensor for name, tensor in model.state_dict().items() if "nm_" in name]
    assert parameters
    assert all(tensor.dtype == torch.float32 for tensor in parameters)
    assert logits(model).dtype == dtype
    # not the logits: .to() rounds the base model's rotary frequencies too, which reloading leaves float32
    cast, x = published[0].to(dtype), torch.randn(3, 32).to(dtype)
    name = "model.layers.1.mlp.gate_proj"
    with torch.no_grad():
        assert torch.equal(cast.nm_modules()[name](x), model.nm_modules()[name](x))


def test_switches_attention(published):
    model = reload(published[1], attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert model.model.layers[0].self_attn.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert model.model.layers[0].self_attn.config._attn_implementation == "sdpa"
    assert model(input_ids=token_ids(), output_attentions=False).logits is not None


def test_config_passes_through_both_ways(published):
    model = reload(published[1])
    assert model.config.hidden_size == model.config.base_config.hidden_size == 32
    model.config.use_cache = False
    assert model.config.base_config.use_cache is False
    assert model(input_ids=token_ids()).past_key_values is None
    model.config.use_cache = True
    assert model(input_ids=token_ids()).past_key_values is not None
    config = AutoConfig.from_pretrained(published[1], trust_remote_code=True)
    assert config.model_type == "nm_sparse"
    assert config.sparsity == model.config.sparsity
    with pytest.raises(AttributeError):
        _ = config.no_such_attribute


def test_resized_embeddings_reload(published, tmp_path):
    model, _ = published
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path / "resized")
    again = reload(tmp_path / "resized")
    assert again.config.vocab_size == again.get_input_embeddings().num_embeddings == 100
    assert torch.equal(logits(again), logits(model))


def test_saved_again_after_reloading(published, tmp_path):
    model, folder = published
    reload(folder).save_pretrained(tmp_path / "second")
    reload(tmp_path / "second").save_pretrained(tmp_path / "third")
    assert torch.equal(logits(reload(tmp_path / "third")), logits(model))
    for name in ("modeling_nm_sparse.py", "configuration_nm_sparse.py", "config.json", "model.safetensors"):
        assert (tmp_path / "third" / name).read_bytes() == (folder / name).read_bytes()


def test_a_base_model_whose_checkpoint_has_older_names_reloads(tmp_path):
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64}
    config = GPTNeoXConfig(**sizes, num_hidden_layers=1, num_attention_heads=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    assert "embed_out.weight" in load_file(tmp_path / "dense" / "model.safetensors")  # lm_head in memory
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    model = NMSparseForCausalLM.from_dense(dense, make_plan(dense, recipe(**RICH)).sparsity())
    model.save_pretrained(tmp_path / "sparse")
    assert torch.equal(logits(reload(tmp_path / "sparse")), logits(model))


def test_shards(published, tmp_path):
    model, _ = published
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert torch.equal(logits(reload(tmp_path / "sharded")), logits(model))


def test_reloads_from_links_as_the_hub_cache_makes_them(published, tmp_path):
    model, folder = published
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert torch.equal(logits(reload(snapshot)), logits(model))


def test_copies_and_pickles(published):
    for model in (published[0], reload(published[1])):
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(twin) is type(model)
            assert torch.equal(logits(twin), logits(model))
            assert (
                twin.model.layers[0].mlp.up_proj.weight.data_ptr()
                != model.model.layers[0].mlp.up_proj.weight.data_ptr()
            )
    assert type(reload(published[1])) is type(reload(published[1]))


def test_device_map(published):
    model = reload(published[1], device_map="cpu")
    assert torch.equal(logits(model), logits(published[0]))


def test_trains_with_gradient_checkpointing(published):
    model = reload(published[1]).train()

    def gradients():
        model.zero_grad()
        model(input_ids=token_ids(), labels=token_ids()).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    model.activation_checkpointing_enable()
    checkpointed = gradients()
    assert all(torch.allclose(plain[name], checkpointed[name]) for name in plain)
    assert any(gradient.abs().max() > 0 for gradient in plain.values())


def test_peft_adapts_a_sparse_model(published):
    adapted = get_peft_model(reload(published[1]), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    before = logits(adapted)
    assert torch.equal(before, logits(published[0]))  # a fresh adapter adds nothing
    adapted(input_ids=token_ids(), labels=token_ids()).loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"modules": ["model.layers.7.mlp.up_proj"]}, "no module"),
        ({"modules": ["model.norm"]}, "has LlamaRMSNorm there"),
        ({"pattern": "3:24"}, "32 input channels cannot be split into groups of 24"),
        ({"pattern": "9:8"}, "not 1 <= n <= m <= 64"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(scheme, message):
    sparsity = copy.deepcopy(sparse_model().config.sparsity)
    sparsity["schemes"][0].update(scheme)
    dense = dense_model()
    with pytest.raises(ValueError, match=message):
        NMSparseForCausalLM.from_dense(dense, sparsity)
    assert type(dense) is LlamaForCausalLM
    assert not any(isinstance(module, NMSparseLinear) for module in dense.modules())


def test_a_version_of_the_future_is_refused(published):
    config = published[1] / "config.json"
    config.write_text(config.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match=r"sparsity\.version is 2"):
        reload(published[1])


def test_offset_follows_the_weight():
    model = sparse_model(shift="dynamic_mean")
    module = model.model.layers[0].mlp.down_proj
    with torch.no_grad():
        module.weight.mul_(2)
    module.update_offset()
    assert torch.allclose(module.nm_offset, module.weight.sum(dim=1), atol=1e-5)


def test_a_dense_checkpoint_gets_neutral_parameters(tmp_path):
    model = sparse_model("llama", **RICH, output_bias="calibrated", residual_rank=2)
    model.config.sparsity["schemes"][0]["output_scale"] = True
    dense_model("llama").save_pretrained(tmp_path)
    again = NMSparseForCausalLM.from_pretrained(tmp_path, config=model.config)
    for name, linear in again.nm_modules().items():
        assert torch.equal(linear.weight, model.nm_modules()[name].weight), name
        ones = [linear.nm_score, linear.nm_scale]
        zeros = [linear.nm_offset, linear.nm_bias, linear.nm_residual_in, linear.nm_residual_out]
        assert all((tensor == 1).all() for tensor in ones), name
        assert all((tensor == 0).all() for tensor in zeros), name


def test_a_model_that_accelerate_dispatched_is_refused():
    model = dense_model("llama")
    accelerate.cpu_offload(model, execution_device="cpu")
    sparsity = sparse_model("llama", **RICH).config.sparsity
    with pytest.raises(ValueError, match=r"model\.layers\.0\..* is offloaded by Accelerate"):
        NMSparseForCausalLM.from_dense(model, sparsity)
