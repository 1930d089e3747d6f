"""Runs that are killed at random moments and continued give the bytes of a run that nobody disturbed, never half."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny_folder import tiny_recipe

TIMES = {"measurements.json"}
"""Files that hold times or sizes of memory, and so differ from run to run."""
RECIPES = {"calibrated": {"sparsity": {"pattern": "8:16", "shift": "static_channel"}}}


class Dying:
    """A process that makes runs and kills them; see `tests/pipeline/dying.py`."""

    def __init__(self, recipe: Path, out: Path) -> None:
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.dying", str(recipe), str(out)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, kind: str, amount: float) -> list[str]:
        self.process.stdin.write(f"{kind} {amount}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().split()


@pytest.fixture
def dying(request, tiny_source, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tiny_source, **RECIPES[request.param]).to_dict()))
    started = Dying(recipe, tmp_path / "place" / "out")
    yield started
    started.process.stdin.close()
    started.process.wait(timeout=60)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in TIMES
    }


@pytest.mark.parametrize(
    ("dying", "kills", "seed"),
    [
        pytest.param("calibrated", 6, 1),
        pytest.param("calibrated", 50, 7, marks=pytest.mark.slow),
    ],
    indirect=["dying"],
)
def test_killed_and_continued(dying, kills, seed, tmp_path):
    out, rng = dying.out, random.Random(seed)
    done, seconds, events = dying.run("never", 0)
    assert done == "done"
    expected = contents(out)
    assert list(out.parent.iterdir()) == [out]
    out.rename(tmp_path / "undisturbed")

    killed = finished = 0
    while killed < kills:
        kind = rng.choice(("seconds", "events"))  # half of the moments are those in which files change
        amount = rng.uniform(0, float(seconds)) if kind == "seconds" else rng.randrange(1, int(events))
        outcome = dying.run(kind, amount)
        assert outcome[0] in ("killed", "done"), outcome
        killed += outcome[0] == "killed"
        if out.exists():  # the last step was taken: what has its final name is whole, whether the run ended or not
            assert contents(out) == expected
        if outcome[0] == "done":
            finished += 1
            assert list(out.parent.iterdir()) == [out]
            out.rename(tmp_path / f"finished-{finished}")
    assert dying.run("never", 0)[0] == "done"
    assert contents(out) == expected
    assert list(out.parent.iterdir()) == [out]
