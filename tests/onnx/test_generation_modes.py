"""What `generate` of transformers can do: the tokens of the torch model, or one sentence; for both kinds of cache."""

import copy

import pytest
import torch
from transformers import DynamicCache

from nm_export.errors import UserError
from tests.onnx.test_modeling_ort import LONG, SHORT, load

MODELS = (("llama", "dynamic_mean"), ("gpt_neox", "all, learned"))
OPTIONS = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
REPEATED = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
MODES = {
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "guidance": {"guidance_scale": 1.5},
    "guidance without cache": {"guidance_scale": 1.5, "use_cache": False},
    "a prompt in chunks": {"prefill_chunk_size": 3},
}


@pytest.fixture(params=MODELS, ids=" ".join)
def both(request, publish):
    published = publish(*request.param)
    return published.model, load(published)


@pytest.mark.parametrize("mode", MODES)
def test_modes_give_the_tokens_of_the_torch_model(both, mode):
    torch_model, model = both
    options = OPTIONS | MODES[mode]
    assert torch.equal(model.generate(REPEATED, **options), torch_model.generate(REPEATED, **options))


def test_assistants_of_either_kind_help_models_of_either_kind(both):
    torch_model, model = both
    expected = torch_model.generate(LONG, **OPTIONS)
    for assisted, assistant in ((model, torch_model), (torch_model, model), (model, model)):
        assert torch.equal(assisted.generate(LONG, assistant_model=assistant, **OPTIONS), expected)


def test_scores_stop_strings_and_no_prompt(both, tokenizer_dir):
    from transformers import AutoTokenizer

    torch_model, model = both
    scores = [m.generate(LONG, output_scores=True, return_dict_in_generate=True, **OPTIONS).scores for m in both]
    torch.testing.assert_close(torch.stack(scores[1]), torch.stack(scores[0]), rtol=1e-4, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    end = tokenizer.decode(torch_model.generate(LONG, **OPTIONS)[0, 8])
    stopped = [m.generate(LONG, stop_strings=[end], tokenizer=tokenizer, do_sample=False) for m in both]
    assert torch.equal(*stopped)
    assert torch.equal(model.generate(**OPTIONS), torch_model.generate(**OPTIONS))


def test_a_prompts_cache_is_copied_repeated_cropped_and_continued(both):
    _, model = both
    whole = torch.cat([LONG, SHORT], dim=1)
    expected = model.generate(whole, **OPTIONS)
    cache = model(LONG).past_key_values
    for _ in range(2):  # a copy does not touch it
        assert torch.equal(model.generate(whole, past_key_values=copy.deepcopy(cache), **OPTIONS), expected)
    model(SHORT, past_key_values=cache)
    cache.crop(-3)
    assert cache.get_seq_length() == 5
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([2, 0]))
    torch.testing.assert_close(
        model(SHORT.expand(2, -1), past_key_values=cache).logits[1], model(whole).logits[0, 5:], rtol=1e-4, atol=1e-4
    )
    with pytest.raises(UserError, match="minus the number of tokens to forget, at most 8"):
        cache.crop(3)
    cache.reset()
    assert torch.equal(model(LONG, past_key_values=cache).logits, model(LONG).logits)


@pytest.mark.parametrize(
    "option",
    [
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "high"},
        {"assistant_early_exit": 1},
        {"cache_implementation": "quantized"},
        {"cache_implementation": "paged"},
    ],
    ids=lambda option: "-".join(map(str, option.values())),
)
def test_what_needs_torch_is_refused_before_anything_runs(both, option, monkeypatch):
    _, model = both
    monkeypatch.setattr(model._runner, "run", lambda *_: pytest.fail("the graph ran"))
    with pytest.raises(UserError, match=f"generate: {next(iter(option))}=.* needs the PyTorch model"):
        model.generate(LONG, **option)


def test_wrong_prompts_and_caches_are_refused(both, monkeypatch):
    _, model = both
    cache = model(LONG).past_key_values
    monkeypatch.setattr(model._runner, "run", lambda *_: pytest.fail("the graph ran"))
    cases = {
        "inputs_embeds": {"inputs_embeds": torch.zeros(1, 3, 64)},
        "no token in them": {"inputs": torch.zeros(1, 0, dtype=torch.long)},
        r"DynamicCache that does not belong": {"inputs": LONG, "past_key_values": DynamicCache()},
        "holds 5 tokens and the prompt 3": {"inputs": SHORT, "past_key_values": cache},
        "position_ids are not the places": {"inputs": LONG, "position_ids": torch.tensor([[0, 1, 0, 1, 2]])},
        "generate_batch|Continuous": None,
    }
    for message, arguments in cases.items():
        with pytest.raises(UserError, match=message):
            model.generate_batch([[1]]) if arguments is None else model.generate(**arguments)


def test_positions_end_where_the_models_do(both):
    _, model = both
    prompt = torch.full((1, 100), 5)
    assert model.generate(prompt, do_sample=False, max_new_tokens=29, min_new_tokens=29).shape == (1, 129)
    with pytest.raises(
        UserError, match=r"100 tokens and 30 more .* 128 positions: ask for at most 29 \(max_new_tokens\)"
    ):
        model.generate(prompt, max_new_tokens=30)
    with pytest.raises(UserError, match="has 129 tokens; the model has 128 positions"):
        model(torch.full((1, 129), 5))
    cache = model(torch.full((1, 128), 5)).past_key_values
    with pytest.raises(UserError, match="has 129 tokens; the model has 128 positions"):
        model(prompt[:, :1], past_key_values=cache)
    # columns of padding are no positions
    ids = torch.cat([torch.zeros(1, 60, dtype=torch.long), prompt], dim=1)
    expected = model(prompt).logits[0, -1]
    torch.testing.assert_close(
        model(ids, attention_mask=(ids > 0).long()).logits[0, -1], expected, rtol=1e-4, atol=1e-4
    )
