"""Text -> token sequences: disjoint splits, seeded choice, bounded reading, sentences for what cannot be read."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nm_export.calibration import documents
from nm_export.calibration import text as text_module
from nm_export.calibration.text import load_text, read_sequences, token_sequences
from nm_export.errors import UserError
from nm_export.recipe import CalibrationSection, EvaluationSection, TextSection

BOS, EOS = 256, 257


def byte_tokenizer(*, bos: bool = False, eos: bool = True) -> PreTrainedTokenizerBase:
    """One token a byte: a sequence shows exactly which text it was cut from."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)} | {"<s>": BOS, "</s>": EOS}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>" if bos else None, eos_token="</s>" if eos else None
    )


def section(dataset: object = "builtin:python-docs", **fields: Any) -> CalibrationSection:
    return CalibrationSection(dataset=str(dataset), **fields)


def text(sections: TextSection) -> str:
    return "".join(load_text(sections))


@pytest.fixture(params=["txt", "raw", "jsonl", "parquet", "builtin"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same thousand numbered lines in every local format, and the built-in text."""
    rows = [f"line {index} of the text, äöü\n" for index in range(1000)]
    path = tmp_path / f"numbers.{request.param}"
    if request.param in ("txt", "raw"):
        path.write_text("".join(rows), encoding="utf-8")
    elif request.param == "jsonl":
        path.write_text("".join(json.dumps({"text": row, "id": 1}) + "\n" for row in rows), encoding="utf-8")
    elif request.param == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"id": list(range(1000)), "text": rows}), path)
    else:
        return "builtin:python-docs"
    return str(path)


def test_splits_are_disjoint_and_complete(dataset: str) -> None:
    train, validation, everything = (text(section(dataset, split=split)) for split in ("train", "validation", "all"))
    size = len(everything)
    assert 0.7 * size < len(train) < 0.9 * size
    assert 0.1 * size < len(validation) < 0.3 * size
    if not dataset.startswith("builtin"):
        assert train + validation == everything
    train_paragraphs = set(train.split("\n\n" if dataset.startswith("builtin") else "\n")) - {""}
    validation_paragraphs = set(validation.split("\n\n" if dataset.startswith("builtin") else "\n")) - {""}
    assert not train_paragraphs & validation_paragraphs


def test_shape_type_and_provenance(dataset: str) -> None:
    wanted = section(dataset, num_samples=7, sequence_length=33, seed=3)
    sequences = read_sequences(byte_tokenizer(), wanted)
    assert sequences.input_ids.shape == (7, 33)
    assert sequences.input_ids.dtype == torch.int64
    assert torch.equal(sequences.input_ids, token_sequences(byte_tokenizer(), wanted))
    provenance = json.loads(json.dumps(sequences.provenance))
    assert provenance["dataset"] == dataset
    assert (provenance["num_samples"], provenance["sequence_length"], provenance["seed"]) == (7, 33, 3)
    assert len(provenance["text_sha256"]) == 64
    assert provenance["tokens"] >= 7 * 33
    assert ("python" in provenance) == (dataset == "builtin:python-docs")


def test_sequences_are_consecutive_pieces_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{index:05d} " for index in range(4000)) + "\nend\n")
    tokenizer = byte_tokenizer()
    whole = text(section(path, split="all"))
    for row in token_sequences(tokenizer, section(path, split="all", num_samples=20, sequence_length=60)):
        assert tokenizer.decode(row) in whole


def test_the_seed_chooses_and_no_sequence_comes_twice() -> None:
    tokenizer = byte_tokenizer()
    first, again, other = (
        token_sequences(tokenizer, section(num_samples=50, sequence_length=100, seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row.tolist()) for row in first}) == 50


def test_documents_end_with_the_end_token(tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in ["ab", "   ", "cd", None]))
    one = {"split": "all", "num_samples": 1}
    with_end = token_sequences(byte_tokenizer(), section(path, sequence_length=6, **one))[0].tolist()
    assert with_end.count(EOS) == 2
    assert with_end[2] == with_end[5] == EOS
    without = token_sequences(byte_tokenizer(eos=False), section(path, sequence_length=4, **one))[0]
    assert byte_tokenizer().decode(without) == "abcd"


def test_every_sequence_starts_with_the_beginning_token_where_the_tokenizer_says_so() -> None:
    ids = token_sequences(byte_tokenizer(bos=True), section(num_samples=9, sequence_length=20))
    assert ids.shape == (9, 20)
    assert (ids[:, 0] == BOS).all()
    assert not (ids[:, 1:] == BOS).any()


def test_too_little_text_gives_the_counts(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("x" * 99 + "\n")
    with pytest.raises(UserError) as caught:
        token_sequences(byte_tokenizer(), section(path, split="all", num_samples=10, sequence_length=50))
    for part in ("calibration", "101 tokens", "need 500", "calibration.num_samples"):
        assert part in str(caught.value)
    held_out = EvaluationSection(dataset=str(path), num_samples=10, sequence_length=50)
    with pytest.raises(UserError, match=r"^evaluation: .* has 0 tokens"):
        token_sequences(byte_tokenizer(), held_out)


def test_exactly_enough_text_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "exact.txt"
    path.write_text("x" * 98 + "\n")
    assert token_sequences(byte_tokenizer(), section(path, split="all", num_samples=2, sequence_length=50)).shape == (
        2,
        50,
    )


def test_an_endless_text_is_read_only_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def endless(*_: object) -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"document {read} " * 1000

    monkeypatch.setattr(text_module, "load_text", endless)
    ids = token_sequences(byte_tokenizer(), section(num_samples=4, sequence_length=16))
    assert ids.shape == (4, 16)
    assert read < 100


@pytest.mark.parametrize(
    ("name", "content", "fields", "part"),
    [
        ("a.txt", None, {}, "calibration.dataset: there is no file"),
        ("a.txt", b"words\ncaf\xe9\n", {"split": "all"}, "not UTF-8 text: line 2 holds the byte 0xe9"),
        ("a.txt", b"words\n", {"split": "test"}, "train, validation, all"),
        ("a.txt", b"words\n", {"name": "small"}, "calibration.name is for Hub datasets"),
        ("a.txt", b"words\n", {"revision": "v1"}, "calibration.revision is for Hub datasets"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', {"split": "all"}, "not a JSON object"),
        ("a.jsonl", b'["a"]\n', {}, "not a JSON object"),
        ("a.jsonl", b'{"txt": "a", "id": 1}\n', {}, "no column 'text', only txt, id"),
        ("a.jsonl", b'{"text": 5}\n', {}, "holds int"),
        ("a.parquet", b"PAR1 but not really", {}, "not a readable parquet file"),
        ("a.parquet", b"", {}, "not a readable parquet file"),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes | None, fields: dict[str, str], part: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(load_text(section(path, **fields)))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_without_the_column(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [1], "content": ["words"]}), path)
    with pytest.raises(UserError, match="no column 'text', only id, content"):
        list(load_text(section(path)))
    assert list(load_text(section(path, text_column="content"))) == ["words"]
    with pytest.raises(UserError, match="holds int"):
        list(load_text(section(path, text_column="id")))


def test_what_is_no_file_is_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(documents, "hub_documents", lambda section, _: iter([asked.append(section.dataset) or "words"]))
    monkeypatch.chdir(tmp_path)
    for name in ("org/corpus", "corpus", "x" * 5000, str(tmp_path)):
        assert text(section(name)) == "words"
    assert asked == ["org/corpus", "corpus", "x" * 5000, str(tmp_path)]
    (tmp_path / "corpus").write_text("a file\n")
    assert text(section("corpus")) == "a file\n"


def test_unknown_built_in_text() -> None:
    with pytest.raises(UserError, match=r"builtin:python-docs"):
        list(load_text(section("builtin:novels")))


def test_without_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'pip install "nm_export\[data\]"'):
        list(load_text(section("org/corpus")))


@pytest.fixture
def dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets` loads as it loads a repository of the Hub: two splits, no network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [json.dumps({"content": f"{split} {index}"}) for index in range(5)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("known_size", [None, 1000])
def test_what_datasets_loads(dataset_folder: Path, known_size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed when the size is unknown or large, from the cache when it is known to be small."""
    import datasets

    load, streamed = datasets.load_dataset, []
    build = datasets.load_dataset_builder

    def builder(*args: object, **options: object) -> object:
        built = build(*args, **options)
        built.info.download_size = known_size
        return built

    def recorded(*args: object, **options: object) -> object:
        streamed.append(options["streaming"])
        return load(*args, **options)

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr(datasets, "load_dataset", recorded)
    rows = list(load_text(section(dataset_folder, text_column="content", split="test")))
    assert rows == [f"test {index}" for index in range(5)]
    assert list(load_text(section(dataset_folder, text_column="content", split="train[:2]"))) == ["train 0", "train 1"]
    assert streamed == [known_size is None, False]


def test_unknown_column_and_split_of_a_dataset_name_the_known_ones(dataset_folder: Path) -> None:
    with pytest.raises(UserError, match="no column 'text', only content"):
        list(load_text(section(dataset_folder)))
    with pytest.raises(UserError, match=r"calibration.split: .* has no split 'dev', only .*train.*test|test.*train"):
        list(load_text(section(dataset_folder, text_column="content", split="dev")))
    with pytest.raises(UserError, match=r"calibration.name"):
        list(load_text(section(dataset_folder, text_column="content", name="no-such-subset")))


def test_no_network_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'org/corpus' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(UserError, match=r"out of reach.*builtin:python-docs"):
        list(load_text(section("org/corpus")))


def test_a_dataset_that_does_not_exist_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def missing(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/corpus' doesn't exist on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset_builder", missing)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    with pytest.raises(UserError, match=r"does not exist on the Hugging Face Hub"):
        list(load_text(section("org/corpus")))
