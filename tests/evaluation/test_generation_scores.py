"""Continuations against a loop that is written out: whole forward passes, one token at a time."""

import math
import statistics

import pytest
import torch

from nm_export.evaluation import evaluate_generation
from tests.tiny_models import dense_model, sparse_model, token_ids

PROMPTS = token_ids(samples=5, length=8)
NEW = 7


@pytest.fixture(scope="module")
def dense():
    return dense_model()


@torch.no_grad()
def continued(model, prompt, ends=()):
    """The greedy continuation of one prompt; `ends` are never chosen."""
    tokens = prompt.tolist()
    for _ in range(NEW):
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        logits[list(ends)] = -math.inf
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


@torch.no_grad()
def loss(model, prompt, written):
    probabilities = model(torch.tensor([[*prompt.tolist(), *written]])).logits[0].double().softmax(-1)
    return statistics.fmean(
        -math.log(probabilities[position][token]) for position, token in enumerate(written, len(prompt) - 1)
    )


def repeated(written):
    runs = [tuple(written[i : i + 4]) for i in range(len(written) - 3)]
    return statistics.fmean(run in runs[:i] for i, run in enumerate(runs))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores(dense, batch_size):
    sparse = sparse_model(pattern="2:4")
    scores = evaluate_generation(sparse, dense, PROMPTS, NEW, batch_size=batch_size)
    ours, theirs = ([continued(model, prompt) for prompt in PROMPTS] for model in (sparse, dense))
    assert ours != theirs
    shared = [
        next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), NEW)
        for pair in zip(ours, theirs, strict=True)
    ]
    losses = [loss(dense, prompt, written) for prompt, written in zip(PROMPTS, ours, strict=True)]
    assert (scores.prompts, scores.prompt_tokens, scores.new_tokens) == (5, 8, NEW)
    assert scores.shared_tokens.value == pytest.approx(statistics.fmean(shared))
    assert scores.shared_tokens.stderr == pytest.approx(statistics.stdev(shared) / math.sqrt(5))
    assert scores.repeated.value == pytest.approx(statistics.fmean(map(repeated, ours)))
    assert scores.dense_repeated.value == pytest.approx(statistics.fmean(map(repeated, theirs)))
    value = math.exp(statistics.fmean(losses))
    assert scores.perplexity.value == pytest.approx(value, rel=1e-4)
    assert scores.perplexity.stderr == pytest.approx(value * statistics.stdev(losses) / math.sqrt(5), rel=1e-3)
    own = math.exp(
        statistics.fmean(loss(dense, prompt, written) for prompt, written in zip(PROMPTS, theirs, strict=True))
    )
    assert scores.dense_perplexity.value == pytest.approx(own, rel=1e-4)


def test_what_repeats(dense):
    with torch.no_grad():
        constant = dense_model()
        constant.lm_head.weight.zero_()  # token 0 is the most likely one, always
    scores = evaluate_generation(constant, None, PROMPTS, 10)
    assert scores.repeated.value == pytest.approx(6 / 7)
    assert scores.perplexity is scores.shared_tokens is None


def test_a_model_beside_itself(dense):
    scores = evaluate_generation(dense, dense, PROMPTS, NEW)
    assert scores.shared_tokens.value == NEW
    assert scores.perplexity == scores.dense_perplexity
    assert scores.repeated == scores.dense_repeated


def test_continuations_are_greedy_and_whole_whatever_the_configuration_asks_for():
    plain, asking = dense_model(), dense_model()
    end = continued(plain, PROMPTS[0])[2]  # what would end the first prompt's continuation
    asking.generation_config.eos_token_id = end
    asking.generation_config.do_sample = True
    asking.generation_config.num_beams = 3
    asking.generation_config.repetition_penalty = 5.0
    asking.generation_config.no_repeat_ngram_size = 2
    scores = evaluate_generation(asking, None, PROMPTS, NEW)
    expected = [continued(plain, prompt, ends=[end]) for prompt in PROMPTS]
    assert scores.repeated.value == pytest.approx(statistics.fmean(map(repeated, expected)))
