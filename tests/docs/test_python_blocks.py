"""The Python of the documentation runs as it is printed, page by page, with tiny models under the names it uses."""

import json
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.docs.blocks import ROOT, Block, blocks
from tests.kernels.sessions import nm_topk_model

PAGES = {page: list(found) for page, found in groupby(blocks("python"), key=lambda block: block.page)}

# What a page's code expects its reader to have: the tiny model's context is 128 tokens, and there is no network.
SUBSTITUTES = {
    "docs/evaluation.md": [
        (
            'texts=["wiki.valid.raw"], tasks=["piqa"]',
            'texts=["wiki.valid.raw"], tasks=["piqa_jsonl"], task_data="data", window=64',
        ),
        ('read_windows(tokenizer, "wiki.valid.raw")', 'read_windows(tokenizer, "wiki.valid.raw", window=64)'),
    ],
}


def sequences(seed: int) -> torch.Tensor:
    return torch.randint(0, 96, (6, 32), generator=torch.Generator().manual_seed(seed))


def variables(page: str, tiny_source: Path, exported: Path) -> dict[str, Any]:
    """What the prose of a page leaves to the reader."""
    if page == "README.md":
        return {
            "model": AutoModelForCausalLM.from_pretrained(tiny_source).eval(),
            "tokenizer": AutoTokenizer.from_pretrained(tiny_source),
            "sequences": sequences(0),
            "held_out_sequences": sequences(1),
        }
    if page == "docs/evaluation.md":
        return {
            "tokenizer": AutoTokenizer.from_pretrained(tiny_source),
            "dense_model": AutoModelForCausalLM.from_pretrained(tiny_source).eval(),
            "models": [AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).eval()],
        }
    return {}


@pytest.fixture
def place(tmp_path, monkeypatch, exported, tiny_source):
    """A folder in which everything lies where the documentation says."""
    for name in ("output/smollm2-135m-8of16", "path/or/hub-id", "path/of/published/folder"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(exported, tmp_path / name)
    shutil.copytree(exported / "onnx", tmp_path / "onnx")
    shutil.copytree(tiny_source, tmp_path / "my-finetune")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "model.onnx").write_bytes(nm_topk_model())
    (tmp_path / "wiki.valid.raw").write_text("".join(f"line {number} of a text\n" for number in range(2000)))
    questions = [{"goal": f"add {a} and 1", "sol1": str(a + 1), "sol2": str(a), "label": a % 2} for a in range(5)]
    (tmp_path / "data").mkdir()
    data = tmp_path / "data" / "piqa_valid_labeled.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_runs(page, place, tiny_source, exported):
    names: dict[str, Any] = variables(page, tiny_source, exported)
    for block in PAGES[page]:
        if block.reason is None:
            run(block, names, variables(page, tiny_source, exported))
    reasons = [f"{block}: {block.reason}" for block in PAGES[page] if block.reason]
    if reasons:
        pytest.skip("; ".join(reasons))


def run(block: Block, names: dict[str, Any], given: dict[str, Any]) -> None:
    code = block.code
    for printed, substitute in SUBSTITUTES.get(block.page, []):
        assert code.count(printed) == 1, f"{block}: what is substituted is not there: {printed}"
        code = code.replace(printed, substitute)
    names.update(given)  # each block starts from what the reader has, and from what earlier blocks imported
    exec(compile("\n" * (block.line - 1) + code, ROOT / block.page, "exec"), names)
