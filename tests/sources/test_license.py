"""The terms of a model, as the card beside it names them."""

import pytest

from nm_export.sources.license import read_license


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
