"""In a log, a line every half minute says what is going on and how far it is."""

import time

import pytest

from nm_export import progress
from nm_export.progress import Work, clock, doing, steps, track
from nm_export.stages import Stages


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.05)


def until_said(capsys, words):
    """Everything on stderr up to a line with these words."""
    said, end = "", time.monotonic() + 20
    while words not in said:
        assert time.monotonic() < end, said
        time.sleep(0.02)
        said += capsys.readouterr().err
    return said


def test_a_stage_without_a_bar_is_not_silent(soon, capsys):
    with Stages().stage("verify", "Verifying"):
        until_said(capsys, "  Verifying, 0:00\n")
    time.sleep(0.2)
    assert "Verifying" not in capsys.readouterr().err


def test_how_far_a_stage_is_and_how_long_it_takes(soon, capsys):
    with doing("Verifying"):
        for item in track(range(4), "Checking modules", total=4):
            if item == 2:
                said = until_said(capsys, "  Verifying: Checking modules: 2/4, 0:00, about 0:0")
                assert "left" in said
    assert "\r" not in said
    assert "\x1b" not in said


def test_steps_that_are_noted_are_not_said_twice_at_once(capsys):
    with steps("Learning", 20, done=10) as advance:
        for step in range(10):
            advance(f"kl {step}")
    assert capsys.readouterr().err.count("Learning") == 5


def test_other_processes_of_a_launch_are_silent(soon, capsys, monkeypatch):
    monkeypatch.setattr(progress._now, "is_silent", True)
    with doing("Calibrating"):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_the_time_that_is_left_counts_this_run_only():
    work = Work("Learning", 100, done=60, before=50, start=time.monotonic() - 10)
    assert work.left() == ", about 0:40 left"
    assert Work("Learning", 100).left() == ""
    assert [clock(seconds) for seconds in (31, 605, 3700)] == ["0:31", "10:05", "1:01:40"]


def test_stages_are_numbered_and_say_how_long_they_take(capsys):
    stages = Stages()
    stages.follow(["text", "onnx"])
    stages.expect(lambda: {"text": 3.0, "onnx": 400.0})
    for name in ("text", "onnx", "other"):
        with stages.stage(name, f"Doing {name}"):
            pass
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("•")]
    assert said == ["• 1 of 2: Doing text …", "• 2 of 2: Doing onnx, about 7 min …", "• Doing other …"]
