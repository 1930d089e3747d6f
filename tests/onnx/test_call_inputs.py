"""Arguments of `forward`: taken as transformers and optimum take them, or refused in a sentence, never ignored."""

import numpy as np
import pytest
import torch

from nm_export.errors import UserError
from tests.onnx.test_modeling_ort import LONG, load
from tests.onnx.tiny import VOCABULARY

MASKED = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
BATCH = torch.tensor([[5, 6, 7, 8, 9], [15, 16, 17, 0, 0]])


@pytest.fixture
def published(publish):
    return publish("llama", "dynamic_mean")


@pytest.fixture
def model(published):
    return load(published)


@pytest.mark.parametrize("kind", [torch.Tensor.int, torch.Tensor.tolist, torch.Tensor.numpy])
def test_ids_and_masks_of_other_kinds_are_taken(model, kind):
    expected = model(BATCH, attention_mask=MASKED).logits[0]
    got = model(kind(BATCH), attention_mask=kind(MASKED)).logits
    assert isinstance(got, np.ndarray) == (kind is torch.Tensor.numpy)  # as optimum answers
    assert torch.equal(torch.as_tensor(got)[0], expected)
    generated = model.generate(kind(BATCH), attention_mask=kind(MASKED), do_sample=False, max_new_tokens=4)
    assert torch.equal(generated, model.generate(BATCH, attention_mask=MASKED, do_sample=False, max_new_tokens=4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": None}, "input_ids are missing"),
        ({"input_ids": LONG[0]}, r"shape \[rows, tokens\], not \[5\]"),
        ({"input_ids": LONG[:0]}, r"shape \[0, 5\]: there is no token"),
        ({"input_ids": LONG[:, :0]}, r"shape \[1, 0\]: there is no token"),
        ({"input_ids": LONG + VOCABULARY}, f"hold 105; the vocabulary has the tokens 0 to {VOCABULARY - 1}"),
        ({"input_ids": torch.full((1, 40), -100)}, "hold -100; the vocabulary"),
        ({"input_ids": LONG.float()}, "are integers, not float32"),
        ({"input_ids": "text"}, "no numbers in rows|are integers"),
        ({"input_ids": [[1, 2], [3]]}, "rows of equal lengths"),
        ({"input_ids": {"input_ids": LONG}}, r"model\(\*\*inputs\)"),
        ({"inputs_embeds": torch.zeros(1, 5, 64)}, "inputs_embeds"),
        ({"input_ids": LONG, "attention_mask": torch.full((1, 5), 2)}, "other numbers than 1"),
        ({"input_ids": LONG, "attention_mask": torch.ones(1, 1, 5, 5)}, r"attention_mask is \(1, 1, 5, 5\)"),
        ({"input_ids": LONG, "past_key_values": ((1, 2),)}, "past_key_values is a tuple"),
        ({"input_ids": LONG, "output_hidden_states": True}, "no output_hidden_states"),
        ({"input_ids": LONG, "output_attentions": True}, "no output_attentions"),
        ({"input_ids": LONG, "cu_seq_lens_q": torch.ones(2)}, "no cu_seq_lens_q"),
        ({"input_ids": LONG, "is_causal": False}, "no is_causal"),
        ({"input_ids": LONG, "foo": 1}, "no foo"),
        ({"input_ids": LONG, "token_type_ids": torch.ones_like(LONG)}, "no token_type_ids"),
        ({"input_ids": LONG, "position_ids": torch.tensor([[0, 1, 0, 1, 2]])}, "every text a row of its own"),
        ({"input_ids": LONG, "labels": LONG[:, 1:]}, "labels have the shape"),
        ({"input_ids": LONG, "labels": LONG, "logits_to_keep": 1}, "logits of all positions"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_a_sentence(model, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        model(**arguments)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_what_changes_nothing_is_taken(model):
    expected = model(LONG).logits
    follow = torch.arange(5)[None]
    for arguments in (
        {"position_ids": follow},
        {"token_type_ids": torch.zeros_like(LONG)},
        {"output_attentions": False, "output_hidden_states": None, "is_causal": True},
    ):
        assert torch.equal(model(LONG, **arguments).logits, expected)
    left = torch.tensor([[0, 0, 5, 6, 7]])
    positions = torch.tensor([[0, 0, 0, 1, 2]])
    model(left, attention_mask=(left > 0).long(), position_ids=positions)
    assert torch.equal(model(LONG, return_dict=False)[0], expected)


def test_the_loss_is_that_of_the_torch_model(published, model):
    labels = BATCH.masked_fill(MASKED == 0, -100)
    for arguments in ({}, {"num_items_in_batch": 3}):
        with torch.no_grad():
            expected = published.model(BATCH, attention_mask=MASKED, labels=labels, **arguments).loss
        got = model(BATCH, attention_mask=MASKED, labels=labels, **arguments).loss
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    left = BATCH.flip(1)
    with pytest.raises(UserError, match="-100 at padding and at the token behind"):
        model(left, attention_mask=MASKED.flip(1), labels=left)


def test_logits_to_keep_are_kept(model):
    whole = model(BATCH).logits
    assert torch.equal(model(BATCH, logits_to_keep=2).logits, whole[:, -2:])
    assert torch.equal(model(BATCH, logits_to_keep=torch.tensor([0, 3])).logits, whole[:, [0, 3]])


def test_a_cache_of_other_rows_is_refused(model):
    cache = model(LONG).past_key_values
    with pytest.raises(UserError, match="past_key_values holds 1 rows, and input_ids have 2"):
        model(BATCH, past_key_values=cache)
