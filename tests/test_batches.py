"""Token ids in whatever form; padding reaches no statistic, no loss and no perplexity."""

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

import nm_export
from nm_export.batches import read_tokens
from nm_export.errors import UserError
from tests.tiny_models import VOCABULARY, dense_model, token_ids

LENGTHS = (9, 14, 14, 5, 11, 14, 8, 12, 6)
ROWS = [token_ids(1, length, seed)[0] for seed, length in enumerate(LENGTHS)]
EVERYTHING = {
    "score": "smoothquant",
    "shift": "static_channel",
    "output_bias": "calibrated",
    "overrides": [{"modules": "*.down_proj", "score": "clact", "shift": "static_scalar"}],
}


def sparse(**sparsity):
    return nm_export.sparsify(dense_model(), **sparsity)


def padded(rows, side="right", padding=0):
    """A batch as tokenizers make it."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), padding)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        part = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[number, part], mask[number, part] = row, 1
    return BatchEncoding({"input_ids": ids, "attention_mask": mask})


FORMS = {
    "lists": [row.tolist() for row in ROWS],
    "tensors": ROWS,
    "arrays": [row.numpy() for row in ROWS],
    "padded on the right": padded(ROWS),
    "padded on the left": padded(ROWS, "left", padding=7),
    "lists with masks": {
        "input_ids": padded(ROWS)["input_ids"].tolist(),
        "attention_mask": padded(ROWS)["attention_mask"].tolist(),
    },
    "without padding": {"input_ids": [row.tolist() for row in ROWS], "attention_mask": [[1] * n for n in LENGTHS]},
    "several batches": [padded(ROWS[:4]), padded(ROWS[4:], "left")],
    "examples": [{"input_ids": row.tolist(), "token_type_ids": [0] * len(row)} for row in ROWS],
    "labels of a collator": {**padded(ROWS), "labels": padded(ROWS, padding=-100)["input_ids"]},
    "mixed": [ROWS[0][None], *ROWS[1:4], padded(ROWS[4:])],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_sequences(form):
    tokens = read_tokens(FORMS[form], "test")
    assert [row.tolist() for row in tokens] == [row.tolist() for row in ROWS]
    assert all(row.dtype == torch.int64 for row in tokens)
    assert (tokens.count, tokens.predicted) == (sum(LENGTHS), sum(LENGTHS) - len(LENGTHS))


def test_an_iterable_is_gone_through_once():
    loader = torch.utils.data.DataLoader(token_ids(5, 8), batch_size=2)
    assert torch.equal(torch.stack(read_tokens(loader, "test").rows), token_ids(5, 8))
    assert len(read_tokens((row[None] for row in ROWS), "test")) == len(ROWS)


def test_batches_hold_one_tensor_for_each_length():
    shapes = [[tuple(ids.shape) for ids in batch] for batch in read_tokens(ROWS, "test").batches(4)]
    assert shapes == [[(1, 9), (2, 14), (1, 5)], [(1, 11), (1, 14), (1, 8), (1, 12)], [(1, 6)]]
    rectangular = token_ids(5, 8)
    assert [
        torch.equal(a, b) for a, b in zip(read_tokens(rectangular, "t").split(2), rectangular.split(2), strict=True)
    ] == [True] * 3


def parameters(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if ".nm_" in name}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("form", ["padded on the right", "padded on the left", "several batches"])
def test_padding_reaches_no_statistic(form, by_block):
    plain, read = sparse(**EVERYTHING), sparse(**EVERYTHING)
    nm_export.calibrate(plain, ROWS, block_by_block=by_block)
    nm_export.calibrate(read, FORMS[form], block_by_block=by_block)
    assert_same(parameters(read), parameters(plain))
    assert any(bool(tensor.any()) for name, tensor in parameters(plain).items() if name.endswith("nm_bias"))


def test_statistics_of_sequences_of_several_lengths_are_those_of_all_their_tokens():
    model = sparse(shift="static_channel")
    seen = []
    first = model.get_submodule("model.layers.0.mlp.down_proj")
    with torch.no_grad(), model.dense():
        hook = first.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
        for row in ROWS:
            model(input_ids=row[None])
        hook.remove()
    nm_export.calibrate(model, padded(ROWS))
    expected = torch.cat(seen).double().mean(dim=0).float()
    torch.testing.assert_close(first.nm_shift, expected, rtol=1e-5, atol=1e-6)


def test_biases_of_equal_lengths_are_those_of_one_at_a_time(monkeypatch):
    together, alone = (sparse(pattern="2:16", output_bias="calibrated") for _ in range(2))
    sequences = token_ids(9, 24)
    nm_export.calibrate(together, sequences)
    monkeypatch.setattr("nm_export.batches.Tokens.are_of_one_length", False)
    nm_export.calibrate(alone, sequences)
    for name, bias in parameters(together).items():
        torch.testing.assert_close(parameters(alone)[name], bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"mode": "blockwise"}, {"mode": "end_to_end"}, {"mode": "end_to_end", "loss": "lm"}]
)
def test_padding_is_in_no_loss(settings):
    results = []
    for form in ("lists", "padded on the left"):
        model = sparse(shift="learned", output_bias="learned", score="weight_norm")
        nm_export.calibrate(model)
        report = nm_export.learn(model, FORMS[form], batch_size=3, held_out_samples=2, learning_rate=1e-2, **settings)
        results.append((report, parameters(model)))
    assert results[0][0] == results[1][0]
    assert_same(results[0][1], results[1][1])


def test_a_batch_of_several_lengths_weighs_tokens():
    """The loss of one step on two sequences, against the mean over their tokens."""
    model = sparse(shift="learned")
    rows = [token_ids(1, 4, 1)[0], token_ids(1, 12, 2)[0], token_ids(1, 6, 3)[0]]
    with torch.no_grad():
        sums = []
        for row in rows[:2]:
            actual = model(input_ids=row[None]).logits[0].double().log_softmax(-1)
            with model.dense():
                dense = model(input_ids=row[None]).logits[0].double().log_softmax(-1)
            sums.append(float((dense.exp() * (dense - actual)).sum()))
    report = nm_export.learn(model, rows, mode="end_to_end", batch_size=2, held_out_samples=1)
    assert report.losses == [pytest.approx(sum(sums) / 16, rel=1e-4)]


@pytest.mark.parametrize("form", FORMS)
def test_padding_is_not_predicted(form):
    model = dense_model()
    assert nm_export.perplexity(model, FORMS[form]) == nm_export.perplexity(nm_export.torch_logits(model), ROWS)
    assert nm_export.divergence(model, {"same": model}, FORMS[form]) == nm_export.divergence(
        model, {"same": model}, ROWS
    )


def test_perplexity_of_sequences_of_several_lengths_is_the_mean_over_all_predicted_tokens():
    model = dense_model()
    with torch.no_grad():
        losses = [model(input_ids=row[None], labels=row[None]).loss.double() * (len(row) - 1) for row in ROWS]
    expected = float((sum(losses) / (sum(LENGTHS) - len(LENGTHS))).exp())
    assert nm_export.perplexity(model, padded(ROWS)) == pytest.approx(expected, rel=1e-5)


def test_padding_is_in_no_score_of_a_layer():
    model = sparse(score="weight_norm")
    nm_export.calibrate(model)
    scores = nm_export.score_layers(model, padded(ROWS, "left"))
    assert scores == nm_export.score_layers(model, ROWS)
    assert scores.tokens == sum(LENGTHS)


WRONG = {
    "text": ("some text", "was given text"),
    "texts": (["some", "texts"], "was given text"),
    "a single sequence": (ROWS[0], r"a single sequence of 9 tokens.*unsqueeze\(0\)"),
    "a single list": ([1, 2, 3], r"a single sequence of 3 tokens"),
    "a single array": (np.arange(3), r"a single sequence of 3 tokens"),
    "three dimensions": (torch.zeros(1, 2, 3, dtype=torch.long), r"a tensor \[1, 2, 3\]"),
    "floats": (torch.rand(2, 3), "float32 numbers; token ids are integers"),
    "nothing": ([], "no token sequences"),
    "an empty sequence": ([[1, 2], []], "sequence 1 .* has no tokens"),
    "all padding": ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, "sequence 0 .* has no tokens"),
    "a hole": ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "zeros between tokens"),
    "another mask": ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1]]}, "another shape"),
    "no ids": ({"ids": [[1, 2]]}, "without input_ids"),
    "positions": ({"input_ids": [[1, 2]], "position_ids": [[3, 4]]}, "does not use position_ids"),
    "other labels": ({"input_ids": [[1, 2]], "labels": [[2, 1]]}, "the labels are others"),
    "labels of a part": ({"input_ids": [[1, 2]], "labels": [[-100, 2]]}, "leave labels out"),
    "a number": (7, "was given an int"),
    "a stranger": ([[1, VOCABULARY]], f"the token {VOCABULARY}.*0 to {VOCABULARY - 1}"),
    "a negative token": ([[1, -1]], "the token -1"),
    "a mask": (token_ids() > 5, "given True and False, as in a mask; token ids are integers"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_holds_no_token_ids_is_refused_in_one_sentence(what):
    value, sentence = WRONG[what]
    model = sparse(shift="learned")
    for call in (
        lambda: nm_export.calibrate(model, value),
        lambda: nm_export.learn(model, value, mode="end_to_end"),
        lambda: nm_export.perplexity(model, value),
        lambda: nm_export.divergence(model, {"other": model}, value),
        lambda: nm_export.score_layers(model, value),
    ):
        with pytest.raises(UserError, match=sentence) as refused:
            call()
        assert "\n" not in str(refused.value)


def test_sequences_that_predict_nothing_are_refused():
    with pytest.raises(UserError, match="at least two tokens"):
        nm_export.perplexity(dense_model(), [[5], [6]])


def test_windows_with_standard_errors_are_of_one_length():
    from nm_export.evaluation import evaluate_text

    with pytest.raises(UserError, match="different lengths"):
        evaluate_text(nm_export.torch_logits(dense_model()), None, ROWS)
