"""The mean relative drop, computed by hand."""

import math

import pytest

from nm_export.evaluation import Estimate, TaskScore, mean_relative_drop, relative_drop


def score(task, value, values=(), main="acc"):
    return TaskScore(task, {"acc": Estimate(value), "f1": Estimate(0.9)}, main, 10, 0, "1.0", tuple(values))


def test_relative_drop():
    drop = relative_drop(score("a", 0.6), score("a", 0.8))
    assert drop == Estimate(pytest.approx(25.0), None)
    assert relative_drop(score("a", 0.9), score("a", 0.8)).value == pytest.approx(-12.5)


def test_its_error_is_that_of_the_paired_difference():
    sparse, dense = [1, 0, 0, 1, 0], [1, 1, 0, 1, 1]
    drop = relative_drop(score("a", 0.4, sparse), score("a", 0.8, dense))
    # differences 0 1 0 0 1: mean 0.4, variance (3 * 0.16 + 2 * 0.36) / 4 = 0.3
    assert drop.value == pytest.approx(50.0)
    assert drop.stderr == pytest.approx(100 * math.sqrt(0.3 / 5) / 0.8)


def test_equal_answers_leave_no_doubt():
    same = score("a", 0.5, [1, 0])
    assert relative_drop(same, same) == Estimate(0.0, 0.0)


def test_the_mean_counts_every_task_once():
    scores = {"a": score("a", 0.6), "b": score("b", 0.45), "c": score("c", 0.3)}
    dense = {"a": score("a", 0.8), "b": score("b", 0.5), "c": score("c", 0.2)}
    assert mean_relative_drop(scores, dense).value == pytest.approx((25 + 10 - 50) / 3)


def test_the_mean_of_errors():
    scores = {task: score(task, 0.4, [1, 0, 0, 1, 0]) for task in "ab"}
    dense = {task: score(task, 0.8, [1, 1, 0, 1, 1]) for task in "ab"}
    single = relative_drop(scores["a"], dense["a"]).stderr
    assert mean_relative_drop(scores, dense).stderr == pytest.approx(single / math.sqrt(2))


def test_undefined_drops_are_left_out():
    scores = {"a": score("a", 0.6), "b": score("b", 0.0), "c": score("c", 0.1, main=None), "d": score("d", 0.1)}
    dense = {"a": score("a", 0.8), "b": score("b", 0.0), "c": score("c", 0.1, main=None)}
    assert mean_relative_drop(scores, dense).value == pytest.approx(25.0)
    assert mean_relative_drop({"b": scores["b"]}, dense) is None
    assert relative_drop(scores["c"], dense["c"]) is None
