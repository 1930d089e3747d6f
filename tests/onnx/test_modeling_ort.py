"""NMSparseORTModelForCausalLM: what transformers users expect, equal to the torch model."""

import shutil

import pytest
import torch

from nm_export.errors import UserError
from nm_export.onnx import NMSparseORTModelForCausalLM
from tests.onnx.test_session import linked
from tests.onnx.tiny import METHODS, tokens

LONG, SHORT = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[15, 16, 17]])
LEFT = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 15, 16, 17]])
MODES = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "several beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    "without cache": {"do_sample": False, "use_cache": False},
}


def load(published, **kwargs):
    return NMSparseORTModelForCausalLM.from_pretrained(published.folder, library=False, **kwargs)


def generate(model, ids, mode, tokens=20):
    mask = (ids > 0).long()
    return model.generate(ids, attention_mask=mask, min_new_tokens=tokens, max_new_tokens=tokens, **MODES[mode])


def assert_generates_like_torch_whatever_the_rows(published, mode):
    model = load(published)
    together = generate(model, LEFT, mode)
    assert torch.equal(together, generate(published.model, LEFT, mode))
    alone = generate(model, LONG, mode), generate(model, SHORT, mode)
    assert torch.equal(together[: len(alone[0])], alone[0])
    assert torch.equal(together[len(alone[0]) :, 2:], alone[1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_generates_what_torch_generates_and_rows_do_not_matter(architecture, mode, publish):
    assert_generates_like_torch_whatever_the_rows(publish(architecture, "dynamic_mean"), mode)


def test_samples_like_torch(publish):
    published = publish("llama", "dynamic_mean")
    drawn = []
    for model in (load(published), published.model):
        torch.manual_seed(0)
        drawn.append(model.generate(LONG, do_sample=True, max_new_tokens=15))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("method", METHODS)
def test_padding_on_either_side_changes_nothing(method, publish):
    model = load(publish("llama", method))
    alone = model(SHORT).logits[0]
    left = model(LEFT, attention_mask=(LEFT > 0).long()).logits[1, 2:]
    right_ids = torch.cat([LONG, torch.tensor([[15, 16, 17, 0, 0]])])
    right = model(right_ids, attention_mask=(right_ids > 0).long()).logits[1, :3]
    torch.testing.assert_close(left, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(right, alone, rtol=1e-5, atol=1e-5)


def test_a_cache_can_be_continued_by_several_tokens(publish):
    published = publish("llama", "magnitude")
    model = load(published)
    mask = (LEFT > 0).long()
    cache = model(LEFT, attention_mask=mask).past_key_values
    new = torch.tensor([[20, 21, 22], [23, 24, 25]])
    mask = torch.cat([mask, torch.ones(2, 3, dtype=torch.long)], dim=1)
    continued = model(new, attention_mask=mask, past_key_values=cache).logits
    whole = model(torch.cat([LEFT, new], dim=1), attention_mask=mask).logits[:, -3:]
    torch.testing.assert_close(continued, whole, rtol=1e-5, atol=1e-5)


def test_the_cache_grows_beyond_its_first_size_in_place(publish):
    model = load(publish("llama", "magnitude"))
    ids = tokens(samples=1, length=100)
    cache = model(ids[:, :1]).past_key_values
    first = cache.buffers[0].data_ptr()
    steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(1, 100)]
    assert cache.buffers[0].data_ptr() == first
    assert cache.get_seq_length() == 100
    torch.testing.assert_close(torch.cat(steps, 1), model(ids).logits[:, 1:], rtol=1e-4, atol=1e-4)
    cache.reserve(1, 200)
    assert cache.capacity >= 300
    more = model(ids[:, :1], past_key_values=cache).logits
    torch.testing.assert_close(more, model(torch.cat([ids, ids[:, :1]], 1)).logits[:, -1:], rtol=1e-4, atol=1e-4)


def test_loads_from_links_and_saves_real_files(publish, tmp_path):
    published = publish("llama", "weight_norm")
    snapshot = linked(published.folder, tmp_path / "cache")
    model = NMSparseORTModelForCausalLM.from_pretrained(snapshot, library=False, local_files_only=True)
    model.save_pretrained(tmp_path / "saved")
    assert not any(path.is_symlink() for path in (tmp_path / "saved").rglob("*"))
    again = NMSparseORTModelForCausalLM.from_pretrained(tmp_path / "saved", library=False)
    assert torch.equal(again(LONG).logits, load(published)(LONG).logits)
    assert again.config.sparsity == published.model.config.sparsity


def test_wrong_calls_are_explained(publish, tmp_path):
    published = publish("llama", "magnitude")
    with pytest.raises(UserError, match="neither a folder nor a repository"):
        NMSparseORTModelForCausalLM.from_pretrained("nobody/nothing", local_files_only=True)
    with pytest.raises(UserError, match=r"model\.onnx does not exist"):
        NMSparseORTModelForCausalLM.from_pretrained(tmp_path)
    shutil.copytree(published.folder / "onnx", tmp_path / "alone" / "onnx")
    with pytest.raises(UserError, match=r"has no config\.json: give the folder of the published model"):
        NMSparseORTModelForCausalLM.from_pretrained(tmp_path / "alone" / "onnx", library=False)
    with pytest.raises(UserError, match="inputs_embeds"):
        load(published)(LONG, inputs_embeds=torch.zeros(1, 5, 64))
    with pytest.raises(ValueError, match=r"attention_mask is \(1, 4\); 1 rows of 5 tokens"):
        load(published)(LONG, attention_mask=torch.ones(1, 4))
