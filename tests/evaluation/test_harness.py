"""Tasks through lm-eval on tiny models, checked against likelihoods that are computed here."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from nm_export.errors import UserError
from nm_export.evaluation import evaluate_tasks, load_tasks
from nm_export.evaluation.harness import OWN_TASKS, choose_examples
from nm_export.evaluation.jsonl_tasks import read_jsonl
from tests.tiny_folder import character_tokenizer

lm_eval = pytest.importorskip("lm_eval")

QUESTIONS = [
    {"q": f"What is {a} + {b}?", "options": [str(a + b), str(a * b + 1), "none"][: 2 + a % 2], "right": a % 2}
    for a, b in [(1, 2), (2, 2), (3, 5), (4, 1), (5, 5), (6, 3)]
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two task files and their data: one through `datasets`, one through this package's reader."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    common = {
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "Q: {{q}}\nA:",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 2.5},
    }
    kwargs = {"data_files": {"validation": str(data)}, "cache_dir": str(folder / "cache")}
    sums = {"task": "tiny_sums", "dataset_path": "json", "dataset_kwargs": kwargs, **common}
    (folder / "sums.yaml").write_text(yaml.safe_dump(sums))
    own = {"task": "tiny_own", "dataset_kwargs": {"file": "questions.jsonl", "keys": ["q", "options"]}, **common}
    function = "custom_dataset: !function nm_export.evaluation.jsonl_tasks.read_jsonl\n"
    (folder / "own.yaml").write_text(function + yaml.safe_dump(own))
    return folder


@pytest.fixture(scope="module")
def dense(tiny_source):
    return AutoModelForCausalLM.from_pretrained(tiny_source).eval()


def likelihood(model, tokenizer, context, continuation):
    """Sum of the log-probabilities of the continuation's tokens."""
    before, after = (tokenizer(text)["input_ids"] for text in (context, continuation))
    ids = torch.tensor([before + after])
    with torch.no_grad():
        log_p = model(ids).logits[0].double().log_softmax(-1)
    return sum(float(log_p[len(before) + i - 1, token]) for i, token in enumerate(after))


def right_answers(model, questions):
    tokenizer = character_tokenizer()
    values = []
    for question in questions:
        prompt = f"Q: {question['q']}\nA:"
        likelihoods = [likelihood(model, tokenizer, prompt, f" {option}") for option in question["options"]]
        values.append(float(likelihoods.index(max(likelihoods)) == question["right"]))
    return tuple(values)


@pytest.mark.parametrize("task", ["tiny_sums", "tiny_own"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_are_those_of_the_likelihoods(folder, dense, task, batch_size):
    suite = load_tasks([task], include_path=[folder], task_data=folder)
    score = evaluate_tasks(dense, character_tokenizer(), suite, batch_size=batch_size)[task]
    expected = right_answers(dense, QUESTIONS)
    assert score.values == expected
    assert score.metrics["acc"].value == pytest.approx(sum(expected) / len(expected))
    assert (score.main, score.examples, score.num_fewshot, score.version) == ("acc", 6, 0, "2.5")


def test_standard_errors_are_the_harnesss(folder, dense):
    suite = load_tasks(["tiny_sums"], include_path=[folder])
    score = evaluate_tasks(dense, character_tokenizer(), suite)["tiny_sums"]
    p, n = score.metrics["acc"].value, len(QUESTIONS)
    assert score.metrics["acc"].stderr == pytest.approx((p * (1 - p) / (n - 1)) ** 0.5)


def test_a_limit_chooses_the_same_examples_for_every_model(folder, dense):
    suite = load_tasks(["tiny_sums"], include_path=[folder], limit=3, seed=5)
    chosen = sorted(random.Random(5).sample(range(6), 3))
    assert suite.examples == {"tiny_sums": chosen}
    assert suite.available == {"tiny_sums": 6}
    for _ in range(2):  # the suite is not used up
        score = evaluate_tasks(dense, character_tokenizer(), suite)["tiny_sums"]
        assert score.values == right_answers(dense, [QUESTIONS[index] for index in chosen])
        assert score.examples == 3


def test_choose_examples():
    assert choose_examples(4, None, 0) == choose_examples(4, 4, 0) == choose_examples(4, 9, 0) == [0, 1, 2, 3]
    assert choose_examples(100, 10, 1) == choose_examples(100, 10, 1) != choose_examples(100, 10, 2)


def test_the_shipped_tasks_read_their_files(tmp_path, dense):
    (tmp_path / "piqa_valid_labeled.jsonl").write_text(
        '{"goal": "dry hands", "sol1": "use a towel", "sol2": "use a brick", "label": 0}\n'
        '{"goal": "cut bread", "sol1": "use soup", "sol2": "use a knife", "label": 1}\n'
    )
    rows = [
        {"question": "Two?", "choices": {"text": ["1", "2", "3"], "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"question": "One?", "choices": {"text": ["1", "2", "3", "4", "5"], "label": list("12345")}, "answerKey": "1"},
    ]
    (tmp_path / "ARC-Easy-Dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = load_tasks(["piqa_jsonl", "arc_easy_jsonl"], task_data=tmp_path)
    piqa, arc = suite.tasks["piqa_jsonl"], suite.tasks["arc_easy_jsonl"]
    docs = list(piqa.validation_docs())
    assert piqa.doc_to_text(docs[1]) == "Question: cut bread\nAnswer:"
    assert piqa.doc_to_choice(docs[1]) == ["use soup", "use a knife"]
    assert [int(piqa.doc_to_target(doc)) for doc in docs] == [0, 1]
    docs = list(arc.validation_docs())
    assert [int(arc.doc_to_target(doc)) for doc in docs] == [1, 0]
    assert [len(arc.doc_to_choice(doc)) for doc in docs] == [3, 5]
    scores = evaluate_tasks(dense, character_tokenizer(), suite)
    assert {name: set(score.metrics) for name, score in scores.items()} == {
        "piqa_jsonl": {"acc", "acc_norm"},
        "arc_easy_jsonl": {"acc", "acc_norm"},
    }


def test_the_shipped_prompts_are_the_harnesss_own():
    theirs = Path(lm_eval.__file__).parent / "tasks"
    for own, other in (("piqa_jsonl", "piqa/piqa"), ("arc_easy_jsonl", "arc/arc_easy")):
        text, reference = (OWN_TASKS / f"{own}.yaml").read_text(), (theirs / f"{other}.yaml").read_text()
        for key in ("doc_to_text", "doc_to_target", "doc_to_choice", "output_type"):
            assert next(x for x in text.splitlines() if x.startswith(key)) in reference.splitlines()


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        (None, "no file"),
        ('{"goal": "a"}\n', "line 1 needs the keys goal, sol1, sol2, label"),
        ('{"goal": \n', "line 1 is not JSON"),
        ("[1]\n", "line 1 needs the keys"),
        ("\n\n", "no examples"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_bad_data(tmp_path, lines, part):
    if lines is not None:
        path = tmp_path / "piqa_valid_labeled.jsonl"
        path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(UserError) as caught:
        load_tasks(["piqa_jsonl"], task_data=tmp_path)
    assert part in str(caught.value)
    assert "piqa_valid_labeled.jsonl" in str(caught.value)


def test_data_without_a_folder():
    with pytest.raises(UserError, match="--task-data"):
        read_jsonl(file="not-here.jsonl")


def test_unknown_tasks_are_named(folder):
    with pytest.raises(UserError, match=r"no task tiny_sms; did you mean .*tiny_sums"):
        load_tasks(["tiny_sms"], include_path=[folder])


@pytest.mark.parametrize("option", ["include_path", "task_data"])
def test_missing_folders_are_named(tmp_path, option):
    missing = tmp_path / "nothing"
    value = [missing] if option == "include_path" else missing
    with pytest.raises(UserError, match=rf"--{option.replace('_', '-')}: there is no folder"):
        load_tasks(["piqa_jsonl"], **{option: value})
