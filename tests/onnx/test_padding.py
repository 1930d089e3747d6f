"""Batches padded on the right, on the left, in between: each row of `generate` as it is alone."""

import pytest
import torch

from nm_export.errors import UserError
from tests.onnx.test_modeling_ort import LONG, SHORT, load

SINGLE = torch.tensor([[20]])
ROWS = (LONG, SHORT, SINGLE)
RIGHT = torch.tensor([[5, 6, 7, 8, 9], [15, 16, 17, 0, 0], [20, 0, 0, 0, 0]])
BOTH = torch.tensor([[5, 6, 7, 8, 9], [0, 15, 16, 17, 0], [0, 0, 20, 0, 0]])
# both kinds of graph; every phase, which tells a call of one token from one of several
MODELS = (
    ("llama", "dynamic_mean"),
    ("llama", "dynamic_median"),
    ("llama", "static_scalar"),
    ("gpt_neox", "all, learned"),
)
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several beams": {"num_beams": 4, "num_return_sequences": 2},
    "without cache": {"use_cache": False},
    "no bigram twice": {"no_repeat_ngram_size": 2},
}


def generate(model, ids, tokens=8, mask=None, **options):
    mask = (ids > 0).long() if mask is None else mask
    options |= {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens}
    return model.generate(ids, attention_mask=mask, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("made", MODELS, ids=" ".join)
def test_rows_padded_on_the_right_continue_as_they_do_alone(made, mode, publish):
    model = load(publish(*made))
    alone = torch.cat([generate(model, ids, **MODES[mode])[:, ids.shape[1] :] for ids in ROWS])
    for batch in (RIGHT, BOTH):
        together = generate(model, batch, **MODES[mode])
        assert torch.equal(together[:, 5:], alone)
        assert torch.equal(together[:, :5], batch.repeat_interleave(len(alone) // 3, 0))  # as they were given


@pytest.mark.parametrize("made", MODELS, ids=" ".join)
def test_an_answer_is_continued_with_its_cache_by_rows_padded_on_the_right(made, publish):
    model = load(publish(*made))
    more = torch.tensor([[30, 31], [32, 0], [33, 34]])
    first = generate(model, RIGHT, return_dict_in_generate=True)
    mask = torch.cat([RIGHT > 0, torch.ones(3, 8, dtype=torch.bool), more > 0], dim=1).long()
    ids = torch.cat([first.sequences, more], dim=1)
    second = generate(model, ids, mask=mask, past_key_values=first.past_key_values)
    for row, prompt in enumerate(ROWS):
        answer = generate(model, prompt, return_dict_in_generate=True)
        longer = torch.cat([answer.sequences, more[row : row + 1, more[row] > 0]], dim=1)
        alone = generate(model, longer, past_key_values=answer.past_key_values)
        assert torch.equal(second[row, ids.shape[1] :], alone[0, longer.shape[1] :])


def test_padding_is_found_without_a_mask(publish):
    model = load(publish("llama", "dynamic_mean"))
    assert torch.equal(
        model.generate(RIGHT, do_sample=False, max_new_tokens=8, pad_token_id=0), generate(model, RIGHT, tokens=8)
    )


def test_samples_and_guided_texts_do_not_see_padding(publish):
    model = load(publish("llama", "dynamic_mean"))
    drawn = []
    for ids in (torch.tensor([[15, 16, 17, 0, 0]]), SHORT):
        torch.manual_seed(0)
        sample = {"do_sample": True, "max_new_tokens": 8, "attention_mask": (ids > 0).long()}
        drawn.append(model.generate(ids, **sample)[:, ids.shape[1] :])
    assert torch.equal(*drawn)
    away = torch.tensor([[3, 4, 0]])
    guided = [
        generate(
            model, LONG, guidance_scale=1.5, negative_prompt_ids=ids, negative_prompt_attention_mask=(ids > 0).long()
        )
        for ids in (away, away[:, :2])
    ]
    assert torch.equal(*guided)


def test_chunks_of_a_prompt_may_be_padding_alone(publish):
    model = load(publish("llama", "dynamic_mean"))
    assert torch.equal(generate(model, RIGHT, prefill_chunk_size=2), generate(model, RIGHT))


@pytest.mark.parametrize("made", MODELS, ids=" ".join)
def test_a_step_that_is_padding_for_one_row_leaves_its_cache_alone(made, publish):
    model = load(publish(*made))
    batch = torch.cat([SHORT, SHORT])
    cache = model(batch).past_key_values
    model(torch.tensor([[20], [0]]), attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]), past_key_values=cache)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 1]])
    step = model(torch.tensor([[21], [21]]), attention_mask=mask, past_key_values=cache).logits
    for row, texts in enumerate(((SHORT, [[20]], [[21]]), (SHORT, [[21]]))):
        cache = None
        for ids in texts:
            alone = model(torch.as_tensor(ids), past_key_values=cache)
            cache = alone.past_key_values
        torch.testing.assert_close(step[row, -1], alone.logits[0, -1], rtol=1e-5, atol=1e-5)


def test_a_mask_cannot_change_what_a_cache_holds(publish):
    model = load(publish("llama", "magnitude"))
    cache = model(RIGHT, attention_mask=(RIGHT > 0).long()).past_key_values
    with pytest.raises(UserError, match="marks 5 tokens of the cache in row 1, where it holds 3"):
        model(RIGHT[:, :1], attention_mask=torch.ones(3, 6), past_key_values=cache)
    with pytest.raises(UserError, match="Row 1 of the prompt has no token"):
        generate(model, RIGHT[:2], mask=torch.tensor([[1] * 5, [0] * 5]))
