"""Windows of text: which tokens, in which order, and what a user reads when there is no such text."""

import hashlib
import json

import pytest

from nm_export.errors import UserError
from nm_export.evaluation.windows import CHARACTERS_PER_TOKEN, read_windows
from tests.tiny_folder import character_tokenizer

TEXT = "".join(f"line {number} of a text\n" for number in range(40))


@pytest.fixture(scope="module")
def tokenizer():
    """One token a character."""
    return character_tokenizer()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.raw"
    path.write_text(TEXT)
    return path


def text_of(tokenizer, windows):
    return tokenizer.decode(windows.input_ids.flatten())


def test_windows_follow_each_other_from_the_start(tokenizer, file):
    result = read_windows(tokenizer, str(file), window=16, windows=5)
    assert result.input_ids.shape == (5, 16)
    assert text_of(tokenizer, result) == TEXT[: 5 * 16]


def test_the_last_window_is_full_or_not_there(tokenizer, file):
    result = read_windows(tokenizer, str(file), window=100, windows=1000)
    assert len(result.input_ids) == len(TEXT) // 100
    assert text_of(tokenizer, result) == TEXT[: len(TEXT) // 100 * 100]


def test_provenance_names_the_text_and_the_tokens(tokenizer, file):
    result = read_windows(tokenizer, str(file), window=16, windows=5)
    p = result.provenance
    read = TEXT[: CHARACTERS_PER_TOKEN * 16 * 5]
    assert p["text_sha256"] == hashlib.sha256(read.encode()).hexdigest()
    assert (p["characters"], p["tokens"], p["windows"], p["window"]) == (len(read), len(read), 5, 16)
    file.write_text(TEXT.replace("line 0", "line 9"))
    other = read_windows(tokenizer, str(file), window=16, windows=5).provenance
    assert other["ids_sha256"] != p["ids_sha256"]
    json.dumps(p)


def test_what_lies_behind_the_windows_is_not_read(tokenizer, file):
    p = read_windows(tokenizer, str(file), window=4, windows=2).provenance
    assert p["characters"] == CHARACTERS_PER_TOKEN * 8
    file.write_text(TEXT[: CHARACTERS_PER_TOKEN * 8] + "something else")
    assert read_windows(tokenizer, str(file), window=4, windows=2).provenance == p


def test_a_beginning_token_stands_in_front_of_every_window(file):
    tokenizer = character_tokenizer()
    tokenizer.add_bos_token = True
    if tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:  # older tokenizers take it from the post-processor
        from tokenizers.processors import TemplateProcessing

        processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = processor
    result = read_windows(tokenizer, str(file), window=16, windows=3)
    assert result.input_ids[:, 0].tolist() == [tokenizer.bos_token_id] * 3
    assert tokenizer.decode(result.input_ids[:, 1:].flatten()) == TEXT[: 3 * 15]
    assert result.provenance["beginning_token"] is True


def test_a_folder_is_its_files_in_order(tokenizer, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.md").write_text("second file")
    (tmp_path / "a.txt").write_text("first file\n")
    (tmp_path / "sub" / "c.jsonl").write_text('{"text": "row one"}\n{"text": "row two"}\n')
    (tmp_path / ".hidden").write_text("not this")
    result = read_windows(tokenizer, str(tmp_path), window=2, windows=100)
    whole = "first file\n" + "\n\n" + "second file" + "\n\n" + "row one\n\nrow two"
    assert text_of(tokenizer, result) == whole[: len(whole) // 2 * 2]


def test_other_columns(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "some words"}\n')
    result = read_windows(tokenizer, str(path), window=5, windows=2, text_column="body")
    assert text_of(tokenizer, result) == "some words"


@pytest.mark.parametrize("name", ["text.txt", "wiki.valid.raw", "text"])
def test_splits(tokenizer, tmp_path, name):
    path = tmp_path / name
    path.write_text(TEXT)
    rest = read_windows(tokenizer, f"{path}@validation", window=10, windows=4)
    assert text_of(tokenizer, rest) == TEXT[-len(TEXT) // 5 :].split("\n", 1)[1][:40]
    assert rest.provenance["split"] == "validation"
    assert read_windows(tokenizer, str(path), window=10, windows=4).provenance["split"] == "all"


def test_the_built_in_text_is_held_out_by_default(tokenizer):
    held_out = read_windows(tokenizer, "builtin:python-docs", window=64, windows=4)
    assert held_out.provenance["split"] == "validation"
    named = read_windows(tokenizer, "builtin:python-docs@validation", window=64, windows=4)
    assert named.input_ids.equal(held_out.input_ids)
    seen = read_windows(tokenizer, "builtin:python-docs@train", window=64, windows=4)
    assert not seen.input_ids.equal(held_out.input_ids)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("missing.txt", ["missing.txt"]),
        ("/no/such/place/at/all", ["/no/such/place/at/all", "no such file"]),
        ("builtin:nothing", ["builtin:nothing", "builtin:python-docs"]),
        ("{tmp}/short.raw", ["short.raw", "5 tokens", "16", "--window"]),
        ("{tmp}/latin.raw", ["latin.raw", "UTF-8"]),
        ("{tmp}/empty", ["empty", "no files"]),
        ("{tmp}/empty@train", ["no split train"]),
        ("{tmp}/short.raw@test", ["test", "short.raw", "train, validation, all"]),
    ],
)
def test_mistakes(tokenizer, tmp_path, text, parts):
    (tmp_path / "short.raw").write_text("short")
    (tmp_path / "latin.raw").write_bytes("é".encode("latin-1") * 50)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        read_windows(tokenizer, text.format(tmp=tmp_path), window=16, windows=2)
    for part in parts:
        assert part in str(caught.value)


def test_a_window_needs_something_to_predict(tokenizer, file):
    with pytest.raises(UserError, match="at least 2"):
        read_windows(tokenizer, str(file), window=1)
