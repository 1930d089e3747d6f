"""Models that leave weights to their base model do everything that models with all weights do, or are not loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPTNeoXConfig, MixtralConfig
from transformers.dynamic_module_utils import get_imports

from nm_export.errors import UserError
from nm_export.modeling import NMSparseForCausalLM
from nm_export.plan import make_plan
from nm_export.publishing.base_weights import BaseWeights, refer
from tests.tiny_models import ARCHITECTURES, dense_model, recipe, sparse_model, token_ids

RICH = {"score": "weight_norm", "shift": "dynamic_mean", "variance_correction": True}


def write(root, architecture="llama", shard="5GB", change=None):
    """Folders `base`, `full` and `small` with the dense model and the sparse one in both forms."""
    dense_model(architecture).save_pretrained(root / "base", max_shard_size=shard)
    model = sparse_model(architecture, **RICH)
    if change:
        change(model)
    model.save_pretrained(root / "full", max_shard_size=shard)
    shutil.copytree(root / "full", root / "small")
    base = BaseWeights(
        {"folder": str(root / "base")},
        root / "base",
        tuple(path.name for path in sorted((root / "base").glob("*.safetensors"))),
    )
    refer(root / "small", root / "small", base, "5GB" if shard == "5GB" else "1KB")
    return root


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Read only."""
    return write(tmp_path_factory.mktemp("forms"))


def load(folder, **kwargs):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **kwargs).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=token_ids()).logits


def new_tensors(folder):
    return load_file(folder / "nm_parameters.safetensors")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_gives_the_same_model(architecture, shard, tmp_path):
    write(tmp_path, architecture, shard)
    full, small = load(tmp_path / "full"), load(tmp_path / "small")
    assert type(small).__module__.startswith("transformers_modules.")
    assert small.state_dict().keys() == full.state_dict().keys()
    assert all(torch.equal(tensor, full.state_dict()[name]) for name, tensor in small.state_dict().items())
    assert torch.equal(logits(small), logits(full))
    new_files = list((tmp_path / "small").glob("*.safetensors"))
    assert (len(new_files) > 1) == (shard == "20KB")
    assert all(".nm_" in name for path in new_files for name in load_file(path))


def test_a_scheme_without_parameters(tmp_path):
    model = sparse_model("llama")
    dense_model("llama").save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "small")
    base = BaseWeights({"folder": "../base"}, tmp_path / "base", ("model.safetensors",))
    refer(tmp_path / "small", tmp_path / "small", base, "5GB")
    assert not list((tmp_path / "small").glob("*.safetensors"))
    assert torch.equal(logits(load(tmp_path / "small")), logits(model))


def test_the_headless_model(forms):
    models = [AutoModel.from_pretrained(forms / name, trust_remote_code=True).eval() for name in ("full", "small")]
    with torch.no_grad():
        expected, hidden = (model(input_ids=token_ids()).last_hidden_state for model in models)
    assert torch.equal(hidden, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "auto"])
def test_dtype(dtype, forms):
    full, small = load(forms / "full", dtype=dtype), load(forms / "small", dtype=dtype)
    assert small.dtype == full.dtype
    assert {name: t.dtype for name, t in small.state_dict().items()} == {
        name: t.dtype for name, t in full.state_dict().items()
    }
    assert torch.equal(logits(small), logits(full))


@pytest.mark.parametrize(
    "device_map",
    [
        "cpu",
        {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
        | {"model.rotary_emb": "cpu", "lm_head": "cpu"},
    ],
)
def test_device_map(device_map, forms, tmp_path):
    small, full = (load(forms / name, device_map=device_map, offload_folder=tmp_path) for name in ("small", "full"))
    assert torch.equal(logits(small), logits(full))


def test_nothing_of_the_way_it_was_loaded_is_left(forms, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    full, small = load(forms / "full"), load(forms / "small")
    names = (small.name_or_path, small.config.name_or_path, small.config.base_config.name_or_path)
    assert names == (str(forms / "small"),) * 3
    assert small.generation_config.to_dict() == full.generation_config.to_dict()
    assert not list(tmp_path.iterdir())


def test_saving_gives_the_full_form(forms, tmp_path):
    load(forms / "small").save_pretrained(tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(
        path.name for path in (forms / "full").iterdir()
    )
    for path in (forms / "full").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_with_a_configuration_and_loading_info(forms):
    config = AutoConfig.from_pretrained(forms / "small", trust_remote_code=True)
    config.use_cache = False
    model, info = load_info(forms / "small", config)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.use_cache is False
    assert config.base_weights["folder"] == str(forms / "base")
    assert torch.equal(logits(model), logits(load(forms / "full")))
    assert torch.equal(logits(NMSparseForCausalLM.from_pretrained(forms / "small").eval()), logits(model))


def load_info(folder, config):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, config=config, output_loading_info=True
    )
    return model.eval(), info


def test_rewritten_weights_are_new_weights(tmp_path):
    """Also where the base model is tied, and holds the changed weight under both names."""
    dense_model("llama").save_pretrained(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    names = ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight")

    def change(model):
        with torch.no_grad():
            for name in names:
                model.get_parameter(name).mul_(1.5)

    write(tmp_path, change=change)
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    refer(
        tmp_path / "full",
        tmp_path / "small",
        BaseWeights({"folder": "../base"}, tmp_path / "base", ("model.safetensors",)),
        "5GB",
    )
    assert {name for name in new_tensors(tmp_path / "small") if ".nm_" not in name} == {*names, "lm_head.weight"}
    full, small = load(tmp_path / "full"), load(tmp_path / "small")
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert torch.equal(logits(small), logits(full))


def test_only_dtypes_that_lose_nothing_are_left_to_the_base_model(tmp_path):
    """Weights that were rounded once must not be read unrounded."""
    model = dense_model("llama")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    wide = sparse_model("llama", **RICH).to(torch.bfloat16).float()
    wide.config.dtype = torch.float32
    wide.save_pretrained(tmp_path / "full")
    shutil.copytree(tmp_path / "full", tmp_path / "small")
    refer(
        tmp_path / "small",
        tmp_path / "small",
        BaseWeights({"folder": str(tmp_path / "base")}, tmp_path / "base", ("model.safetensors",)),
        "5GB",
    )
    assert all(".nm_" in name for name in new_tensors(tmp_path / "small"))
    full, small = load(tmp_path / "full"), load(tmp_path / "small")
    assert small.dtype == torch.float32
    assert torch.equal(logits(small), logits(full))


TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def written_as_of_old(config, root, **sparsity):
    """A base model whose files keep older names, beside the sparse model."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(root / "base")
    model = NMSparseForCausalLM.from_dense(model, make_plan(model, recipe(**sparsity)).sparsity())
    model.save_pretrained(root / "small")
    refer(
        root / "small",
        root / "small",
        BaseWeights({"folder": "../base"}, root / "base", ("model.safetensors",)),
        "5GB",
    )
    return model


def test_a_weight_with_an_older_name(tmp_path):
    config = GPTNeoXConfig(**TINY)
    model = written_as_of_old(config, tmp_path, targets="*.dense")
    assert set(new_tensors(tmp_path / "small")) == {"lm_head.weight"}  # embed_out.weight in the base model's file
    assert torch.equal(logits(load(tmp_path / "small")), logits(model))


def test_experts_that_are_joined_when_they_are_loaded(tmp_path):
    config = MixtralConfig(**TINY, num_key_value_heads=2, num_local_experts=2)
    with pytest.raises(UserError, match=r"hold model\.layers\.0\..*where the model has other weights \(.*experts"):
        written_as_of_old(config, tmp_path, targets="*.q_proj")


@pytest.fixture
def copies(forms, tmp_path):
    """A base model and a small folder beside it that may be damaged."""
    for name in ("base", "small"):
        shutil.copytree(forms / name, tmp_path / name)
    path = tmp_path / "small" / "config.json"
    path.write_text(path.read_text().replace(str(forms / "base"), "../base"))
    return tmp_path


def change_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_base_model_beside_it(copies, forms):
    assert torch.equal(logits(load(copies / "small")), logits(load(forms / "full")))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: change_a_byte(root / "base" / "model.safetensors"),
            r"model\.safetensors in .*base is not the file that this model was made from \(SHA-256 \w{12}\.\.\. inst",
        ),
        (
            lambda root: (root / "base" / "model.safetensors").write_bytes(b"cut"),
            r"model\.safetensors in .*base is not the file .* \(3 bytes instead of [\d,]+\); nothing was loaded",
        ),
        (
            lambda root: change_a_byte(root / "small" / "nm_parameters.safetensors"),
            r"nm_parameters\.safetensors in .*small is not the file",
        ),
        (lambda root: (root / "base" / "model.safetensors").unlink(), r"cannot be had: .* does not appear to have a"),
        (lambda root: shutil.rmtree(root / "base"), r"base model's folder .* is not there; give base_folder"),
        (
            lambda root: rename_in_config(root, "../base/model.safetensors"),
            r"base_weights names '\.\./base/model\.safetensors', which is not the name of a safetensors file",
        ),
        (
            lambda root: rename_in_config(root, "pytorch_model.bin"),
            r"base_weights names 'pytorch_model\.bin', which is not the name of a safetensors file",
        ),
    ],
)
def test_another_base_model_is_refused_before_anything_is_loaded(damage, message, copies, monkeypatch):
    damage(copies)
    monkeypatch.setattr("transformers.PreTrainedModel._load_pretrained_model", None)
    with pytest.raises((OSError, ValueError), match=message) as caught:
        load(copies / "small")
    assert len(str(caught.value).splitlines()) == 1


def test_a_configuration_that_lacks_something(copies):
    path = copies / "small" / "config.json"
    path.write_text(path.read_text().replace('"new_files"', '"old_files"'))
    with pytest.raises(ValueError, match=r"config\.json: base_weights lacks new_files"):
        load(copies / "small")


def rename_in_config(root, name):
    path = root / "small" / "config.json"
    config = json.loads(path.read_text())
    config["base_weights"]["files"] = {name: config["base_weights"]["files"].popitem()[1]}
    path.write_text(json.dumps(config))


def test_a_base_model_in_another_place(copies, forms):
    (copies / "base").rename(copies / "moved")
    assert torch.equal(logits(load(copies / "small", base_folder=copies / "moved")), logits(load(forms / "full")))


def test_the_published_code_imports_torch_and_transformers_only(forms):
    needed = {name for path in (forms / "small").glob("*.py") for name in get_imports(path)}
    assert needed - set(__import__("sys").stdlib_module_names) == {"torch", "transformers"}
