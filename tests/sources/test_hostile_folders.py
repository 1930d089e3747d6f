"""Model folders of strangers, through the command line: no pickle is read, no path escapes, nothing absurd is built."""

import json
import math
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.refusal import assert_refused
from tests.tiny_folder import tiny_recipe

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
UP = "model.layers.0.mlp.up_proj.weight"


class Pickled:
    """Leaves a file behind when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def folder(tmp_path: Path, tiny_source: Path) -> Path:
    """A model folder to spoil."""
    return Path(shutil.copytree(tiny_source, tmp_path / "model"))


@pytest.fixture
def refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Assert that an export of the folder is refused with this message, and that nothing was written or unpickled."""
    recipe = tiny_recipe(folder).to_dict()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)

    def check(message: str, *options: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        assert_refused(["recipe.yaml", "--output-dir", "out", *options], message)
        assert sorted(tmp_path.rglob("*")) == before

    return check


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def enlarge(path: Path) -> None:
    """A gigabyte of zeros that takes no room."""
    with path.open("wb") as file:
        file.truncate(10**9)


def split_file(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join_file(file: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def point_index_at(folder: Path, name: object) -> None:
    """Let the index name one file for every tensor; a decoy hides that there is no other."""
    names = list(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).rename(folder / "decoy.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, name)}))


# Pickles


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00001.bin"])
@pytest.mark.parametrize("decoy", [False, True])
def test_pickles_are_not_opened(folder, refused, tmp_path, name, decoy):
    tensors = load_file(folder / WEIGHTS)
    marker = tmp_path / "ran"
    torch.save({**tensors, "x": Pickled(marker)}, folder / name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
    (folder / WEIGHTS).rename(folder / "decoy.safetensors" if decoy else tmp_path / "elsewhere")
    refused("pickles, which can run any code .* convert the model to safetensors first")
    assert not marker.exists()


def test_weights_that_the_configuration_names(folder, refused):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    change(folder / "config.json", transformers_weights="adapter_model.bin")
    refused("transformers_weights is not read")


def test_an_adapter_names_another_model(folder, refused):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/etc"}))
    refused("holds an adapter for the base model '/etc'")


def test_how_an_adapter_is_merged_is_said_whatever_else_the_folder_lacks(folder, refused):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/base"}))
    (folder / "config.json").unlink()
    refused(r"an adapter for the base model .a/base. \(adapter_config.json\), not a model of its own; merge the two")
    refused(r"merge_and_unload\(\)")


# Paths


@pytest.mark.parametrize("name", ["../{}", "sub/../../{}", "{parent}/{}", "..\\{}", "w.bin", "", ".", 3, None])
def test_shards_are_files_of_the_folder(folder, refused, name):
    shutil.copy(folder / WEIGHTS, folder.parent / "outside.safetensors")
    text = name.format("outside.safetensors", parent=folder.parent) if isinstance(name, str) else name
    point_index_at(folder, text)
    refused("index.json (names .* no safetensors file of the folder|has no weight_map)")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "chat_template.jinja"])
def test_links_out_of_the_folder(folder, refused, name):
    outside = folder.parent / "secret"
    if (folder / name).exists():
        (folder / name).rename(outside)
    else:
        outside.write_text("secret")
    (folder / name).symlink_to(outside)
    refused(f"{name} is a link that leads out of the folder .*/model; copy the file there")


def test_links_that_lead_nowhere_or_to_themselves(folder, refused):
    (folder / "extra.txt").symlink_to("nothing")
    refused("extra.txt is a link that leads nowhere")
    (folder / "extra.txt").unlink()
    (folder / "extra.txt").symlink_to("extra.txt")
    refused("extra.txt is a link that leads nowhere")


def test_chat_templates_are_no_paths(folder, refused):
    change(folder / "tokenizer_config.json", chat_template=[{"name": "../../evil", "template": "x"}])
    refused(r"a chat template has the name '\.\./\.\./evil'")


# Weights


def deep(file: Path) -> None:
    join_file(file, b'{"a":' * 100_000)


def absurd_length(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def a_long_header(file: Path) -> None:
    enlarge(file)
    with file.open("r+b") as stream:
        stream.write(struct.pack("<Q", 99_000_000))


def the_same_key_twice(file: Path) -> None:
    header, data = split_file(file)
    text = json.dumps(header)
    join_file(file, f"{text[:-1]}, {json.dumps(UP)}: {json.dumps(header[UP])}}}".encode(), data)


def overlapping(file: Path) -> None:
    header, data = split_file(file)
    header["model.layers.0.mlp.gate_proj.weight"]["data_offsets"] = header[UP]["data_offsets"]
    join_file(file, header, data)


def with_entry(**entry: Any) -> Any:
    def edit(file: Path) -> None:
        header, data = split_file(file)
        header[UP].update(entry)
        join_file(file, header, data)

    return edit


def with_tensor(function: Any) -> Any:
    def edit(file: Path) -> None:
        tensors = load_file(file)
        tensors[UP] = function(tensors[UP]).contiguous()
        save_file(tensors, file, metadata={"format": "pt"})

    return edit


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (absurd_length, "damaged or incomplete"),
        (a_long_header, "damaged or incomplete"),
        (deep, "damaged or incomplete"),
        (overlapping, "damaged or incomplete"),
        (lambda file: join_file(file, []), "damaged or incomplete"),
        (lambda file: file.write_bytes(b""), "damaged or incomplete"),
        (lambda file: os.truncate(file, 5000), "damaged or incomplete"),
        (lambda file: join_file(file, {}), "lacks the tensors|checkpoint holds 0 tensors"),
        (with_entry(data_offsets=[2**40, 2**40 + 18432]), "damaged or incomplete"),
        (with_entry(shape=[-96, 48]), "damaged or incomplete"),
        (with_entry(shape=[2**40, 2**40]), "damaged or incomplete"),
        (with_entry(dtype="OBJECT"), "damaged or incomplete"),
        (the_same_key_twice, "given twice"),
        (with_tensor(lambda w: w.t()), r"up_proj\.weight has the shape \[48, 96\] .*wants \[96, 48\]"),
        (with_tensor(lambda w: w[0]), r"up_proj\.weight has the shape \[48\]"),
        (with_tensor(lambda w: w.to(torch.int8)), r"up_proj\.weight is stored as I8"),
        (with_tensor(lambda w: w.to(torch.float8_e4m3fn)), r"up_proj\.weight is stored as F8_E4M3"),
        (with_tensor(lambda w: w > 0), r"up_proj\.weight is stored as BOOL"),
    ],
)
def test_weight_files(folder, refused, spoil, message):
    spoil(folder / WEIGHTS)
    refused(message)


def test_a_tensor_in_two_shards(folder, refused):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / "a.safetensors")
    save_file({UP: tensors[UP] * 2}, folder / "b.safetensors")
    mapping = dict.fromkeys(tensors, "a.safetensors") | {UP: "b.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": mapping}))
    refused(r"b\.safetensors holds .*up_proj\.weight, which a\.safetensors holds too")


# Configurations


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 999},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 2.5},
        {"num_hidden_layers": math.nan},
        {"hidden_size": -48},
        {"hidden_size": 10**30},
        {"hidden_size": 10**400},
        {"head_dim": 0},
        {"head_dim": -16},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 0},
        {"num_key_value_heads": 2},
        {"vocab_size": 10**12},
        {"vocab_size": 0},
        {"num_labels": 10**12},
        {"max_position_embeddings": -1},
        {"max_position_embeddings": 10**15},
        {"rms_norm_eps": math.nan},
        {"rms_norm_eps": math.inf},
        {"rms_norm_eps": "small"},
        {"rope_parameters": {"rope_theta": math.nan, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "unknown"}},
        {"rope_parameters": [1]},
        {"layer_types": ["full_attention"] * 200_000},
        {"eos_token_id": 10**30},
        {"pad_token_id": 5000},
        {"hidden_act": "nothing"},
        {"dtype": "float7"},
        {"dtype": "int8"},
        {"model_type": None},
        {"model_type": ["llama"]},
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel@main:run"},
        {"quantization_config": [1]},
    ],
    ids=lambda values: str(values)[:50],
)
def test_configurations(folder, refused, values):
    change(folder / "config.json", **values)
    refused("config|cannot be loaded")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"5",
        b'"x"',
        b"{",
        b"\xff\xfe\x00",
        b'{"a":' * 100_000,
        b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": ' + b"1" * 10_000 + b"}",
    ],
    ids=lambda content: str(content[:12]),
)
def test_small_files_that_are_no_json_objects(folder, refused, name, content):
    (folder / name).write_bytes(content)
    refused(f"/{name} (is|holds)")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_small_files_of_a_gigabyte(folder, refused, name):
    enlarge(folder / name)
    refused(rf"/{name} is larger than \d+ MB")


def test_an_index_of_a_gigabyte(folder, refused):
    point_index_at(folder, "decoy.safetensors")
    enlarge(folder / INDEX)
    refused("index.json is larger than 32 MB")


def test_a_pipe_in_place_of_a_file(folder, refused):
    (folder / "generation_config.json").unlink()
    os.mkfifo(folder / "generation_config.json")
    refused("generation_config.json is no file")


def test_a_dry_run_refuses_the_same_configurations(folder, refused):
    change(folder / "config.json", num_hidden_layers=10**9)
    refused("num_hidden_layers is 1,000,000,000, which no model has", "--dry-run")


# Tokenizers


def tokenizer(**values: Any) -> Any:
    return lambda folder: change(folder / "tokenizer_config.json", **values)


def rust(edit: Any) -> Any:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        edit(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        rust(lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})),  # Rust panics
        rust(lambda t: t["model"]["vocab"].update(a=2**32 - 1)),
        rust(lambda t: t["model"]["vocab"].update(a=-1)),
        rust(lambda t: t["model"].update(merges=[["q", "zzzzz"]])),
        rust(lambda t: t.update(model={"type": "Unigram", "unk_id": 10**9, "vocab": [["a", 0.0]]})),
        rust(lambda t: t["model"]["vocab"].update({k: v + 5000 for k, v in t["model"]["vocab"].items()})),
        lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000),
        lambda folder: (folder / "tokenizer.json").write_text("[]"),
        tokenizer(chat_template=5),
        tokenizer(model_max_length="long"),
        tokenizer(bos_token={"a": 1}),
        tokenizer(tokenizer_class=["x"]),
        tokenizer(added_tokens_decoder={"-5": {"content": "x"}, "x": 3}),
        tokenizer(padding_side="up"),
    ],
)
def test_tokenizers(folder, refused, spoil):
    spoil(folder)
    refused("the tokenizer of ")
