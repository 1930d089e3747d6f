"""What the card beside a model says of it."""

import pytest
import yaml

from nm_export.sources.source_card import read_description, read_license


@pytest.mark.parametrize(
    ("card", "terms"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# A\n", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: https://example.org/own\n---\n",
            {"license": "other", "license_name": "own", "license_link": "https://example.org/own"},
        ),
        ("---\nlicense: [mit, gpl]\n---\n", {}),
        ("---\nlicense: 'unclosed\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("---\nlicense: " + "[" * 100_000 + "\n---\n", {}),
        ("# no front matter\n", {}),
        ("---\nlicense: mit\n---\n" + " " * 1_000_000, {}),
    ],
)
def test_what_a_card_names(card, terms, tmp_path):
    (tmp_path / "README.md").write_text(card)
    assert read_license(tmp_path) == terms


def test_no_card_and_no_text(tmp_path):
    assert read_license(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"\xff\xfe---")
    assert read_license(tmp_path) == {}


def test_what_a_fine_tune_says_of_itself(tmp_path):
    card = {
        "language": ["de", "English"],
        "tags": ["poems", "gguf", 7],
        "datasets": ["me/poems", "/home/me/poems.json"],
        "base_model": "Qwen/Qwen2-0.5B",
        "pipeline_tag": "text-generation",
        "license": "mit",
    }
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n\n# Poems\n")
    assert read_description(tmp_path) == {
        "language": ["de"],
        "tags": ["poems"],
        "datasets": ["me/poems"],
        "base_model": ["Qwen/Qwen2-0.5B"],
        "pipeline_tag": "text-generation",
    }


@pytest.mark.parametrize("base", ["/home/me/qwen", "./qwen", "qwen", {"a": "b"}, ["/home/me/qwen"], 3])
def test_folders_of_another_machine_are_no_models(base, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'base_model': base})}---\n")
    assert read_description(tmp_path) == {}
