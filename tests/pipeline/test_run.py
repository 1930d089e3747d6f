"""The whole road on a tiny model: what is written, that it is verified, that it runs everywhere."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    Gemma3TextConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from nm_export import NMSparseORTModelForCausalLM, load_exported, load_recipe, pipeline, stages
from nm_export.errors import UserError
from nm_export.generation import generate
from tests.conftest import MIXED
from tests.tiny_folder import SIZES, tiny_recipe, write_tiny_folder

SCHEMES = {
    "magnitude": {"pattern": "8:16"},
    "every layer another way": {
        "pattern": "2:4",
        "overrides": [
            {"modules": "model.layers.0.self_attn.*", "shift": "static_scalar", "variance_correction": True},
            {"modules": "model.layers.0.mlp.*", "score": "weight_norm", "score_exponent": 0.5, "pattern": "3:8"},
            {"modules": "model.layers.1.self_attn.*", "shift": "dynamic_median", "phase": "prefill"},
            {"modules": "model.layers.1.mlp.*", "shift": "dynamic_mean", "pattern": "1:48"},
        ],
    },
    "decode": {"pattern": "2:4", "phase": "decode", "shift": "static_channel", "score": "weight_norm"},
    "nothing dropped": {"pattern": "4:4", "targets": ["*.up_proj", "*.q_proj"]},
}
# The other architectures go through the graph, module by module, in the tests of the ONNX export.
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**SIZES),
    "gemma3": Gemma3TextConfig(
        **SIZES, head_dim=16, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi3": Phi3Config(**SIZES),
}
MIXED_FOR = {  # Phi-3 packs q, k, v and gate, up
    "phi3": {
        "pattern": "8:16",
        "score": "weight_norm",
        "shift": "static_channel",
        "overrides": [{"modules": "*.gate_up_proj", "pattern": "2:4", "shift": "dynamic_mean"}],
    }
}
BACKENDS = ("torch", "onnx", "genai")
PROMPT = "The quick brown fox"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_base_weights_are_untouched(folder: Path, source: Path) -> None:
    base, written = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    new = {name for name in written if name.rpartition(".")[2].startswith("nm_")}
    assert written.keys() - new == base.keys()
    for name, tensor in base.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_every_scheme_is_exported_verified_and_generates(scheme, tiny_source, tmp_path):
    summary = pipeline.run(tiny_recipe(tiny_source, sparsity=scheme), output_dir=tmp_path / "out")
    report = summary.verification
    pruned = {linear.name for linear in summary.plan.pruned}
    assert set(report.modules) == {"reloaded", "onnx_kernel", "onnx_function"}
    assert {check.modules for check in report.modules.values()} == {len(pruned)}
    assert report.reloaded_logits_equal
    # not 0: for one token, math libraries may round by the address of the weight, and a file is mapped where it likes
    assert report.modules["reloaded"].largest_error < 1e-6
    assert all(check.largest_error < 1e-5 for check in report.modules.values())
    assert_base_weights_are_untouched(tmp_path / "out", tiny_source)

    model, tokenizer, _ = load_exported(tmp_path / "out")
    assert set(model.nm_modules()) == pruned
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad():
        sparse = model(ids).logits
        with model.dense():
            dense = model(ids).logits
    changes_prompts = scheme["pattern"] != "4:4" and scheme.get("phase") != "decode"
    assert torch.allclose(sparse, dense, atol=1e-3) != changes_prompts
    ort = NMSparseORTModelForCausalLM.from_pretrained(tmp_path / "out", library=True)
    tokens = [m.generate(ids, do_sample=False, min_new_tokens=8, max_new_tokens=8) for m in (model, ort)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture, tmp_path):
    source = write_tiny_folder(tmp_path / "source", ARCHITECTURES[architecture])
    summary = pipeline.run(
        tiny_recipe(source, sparsity=MIXED_FOR.get(architecture, MIXED)), output_dir=tmp_path / "out"
    )
    assert set(summary.verification.modules) == {"reloaded", "onnx_kernel", "onnx_function"}
    assert_base_weights_are_untouched(tmp_path / "out", source)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert any(name.endswith(".bias") for name in written) == (architecture == "qwen2")


def test_files(exported):
    names = set(contents(exported))
    expected = {
        "README.md",
        "config.json",
        "configuration_nm_sparse.py",
        "generation_config.json",
        "measurements.json",
        "model.safetensors",
        "modeling_nm_sparse.py",
        "nm_export.json",
        "pictures/layers.svg",
        "pictures/quality.svg",
        "recipe.yaml",
        "reference_nm_sparse.py",
        "report.html",
        "stages.json",
        "tokenizer.json",
        "tokenizer_config.json",
        *(f"onnx/{name}" for name in ("genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json")),
    }
    assert expected <= names
    assert not any(path.is_symlink() for path in exported.rglob("*"))
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_folder_is_as_readable_as_any_other(exported, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    assert exported.stat().st_mode == (tmp_path / "folder").stat().st_mode
    assert {path.stat().st_mode for path in exported.iterdir() if path.is_file()} == {
        (tmp_path / "folder" / "file").stat().st_mode
    }


def test_config(exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["model_type"] == "nm_sparse"
    assert config["auto_map"] == {
        "AutoConfig": "configuration_nm_sparse.NMSparseConfig",
        "AutoModel": "modeling_nm_sparse.NMSparseModel",
        "AutoModelForCausalLM": "modeling_nm_sparse.NMSparseForCausalLM",
    }
    assert config["base_config"]["model_type"] == "llama"
    assert config["base_config"]["hidden_size"] == SIZES["hidden_size"]
    sparsity = config["sparsity"]
    assert (sparsity["version"], sparsity["rewritten"]) == (1, [])
    scheme_of = {name: scheme for scheme in sparsity["schemes"] for name in scheme["modules"]}
    attention = "model.layers.0.self_attn"
    patterns = [scheme_of[f"{attention}.{kind}_proj"]["pattern"] for kind in "qkvo"]
    assert patterns == ["8:16", "2:4", "3:8", "8:16"]
    assert "model.layers.1.self_attn.o_proj" not in scheme_of
    assert scheme_of["model.layers.1.mlp.up_proj"]["phase"] == "prefill"
    assert [f"{attention}.q_proj"] in sparsity["input_groups"]
    assert ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"] in sparsity["input_groups"]
    assert sorted(name for group in sparsity["input_groups"] for name in group) == sorted(scheme_of)


def test_new_parameters_are_float32_and_only_where_needed(exported):
    shapes = {}
    with safe_open(exported / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
            if ".nm_" in name and ".layers.0." in name:
                tensor = file.get_slice(name)
                assert tensor.get_dtype() == "F32"
                shapes[name.removeprefix("model.layers.0.")] = tensor.get_shape()
    attention = {
        name: shape for name, shape in shapes.items() if name.startswith("self_attn.") and "o_proj" not in name
    }
    assert attention == {
        "self_attn.q_proj.nm_score": [48],
        "self_attn.q_proj.nm_shift": [48],
        "self_attn.q_proj.nm_offset": [48],
        "self_attn.k_proj.nm_score": [48],
        "self_attn.k_proj.nm_offset": [16],
        "self_attn.v_proj.nm_offset": [16],
    }
    assert shapes["mlp.down_proj.nm_shift"] == [1]


def test_record_repeats_the_run_and_holds_no_time(exported, tiny_source):
    text = (exported / "nm_export.json").read_text()
    record = json.loads(text)
    assert not re.search(r"20\d\d-\d\d|seconds|timestamp|machine", text)
    assert record["base_model"]["source"] == str(tiny_source)
    assert record["linear_macs"]["pruned_linears"] == 13
    assert record["versions"]["torch"] == torch.__version__
    recipe = load_recipe(exported / "recipe.yaml")
    assert recipe == tiny_recipe(tiny_source, sparsity=MIXED, evaluation={"dataset": "builtin:python-docs"})
    assert recipe.to_yaml(changed_first=True) == (exported / "recipe.yaml").read_text()


def test_long_runs_say_how_long_their_stages_take(tiny_source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "WORTH_ESTIMATING", 0)
    monkeypatch.setattr(stages, "WORTH_SAYING", 0.0)
    recipe = tiny_recipe(tiny_source, verify={"enabled": False}, evaluation={"enabled": False})
    pipeline.run(recipe, output_dir=tmp_path / "out", skip_onnx=True)
    said = capsys.readouterr().err
    assert re.search(r"^• 3 of 4: Calibrating 14 linears, about \d+\.\d s …$", said, re.M), said


def test_two_runs_give_the_same_bytes(tiny_source, tmp_path):
    recipe = tiny_recipe(tiny_source, sparsity=MIXED, verify={"enabled": False})
    first, second = (pipeline.run(recipe, output_dir=tmp_path / place / "out").folder for place in "ab")
    written, again = contents(first), contents(second)
    assert written.keys() == again.keys()
    differing = {name for name in written if written[name] != again[name]}
    assert differing <= {"measurements.json"}


def test_without_onnx(tiny_source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nm_export.onnx", None)
    summary = pipeline.run(
        tiny_recipe(tiny_source, evaluation={"enabled": False}), output_dir=tmp_path / "out", skip_onnx=True
    )
    assert not (tmp_path / "out" / "onnx").exists()
    assert set(summary.verification.modules) == {"reloaded"}
    assert summary.perplexity is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "not measured" in card
    assert "NMSparseORT" not in card
    monkeypatch.undo()
    for backend in ("onnx", "genai"):
        with pytest.raises(UserError, match="onnx"):
            generate(tmp_path / "out", PROMPT, backend=backend)


def test_sharded_bfloat16(tiny_source, tmp_path):
    recipe = tiny_recipe(
        tiny_source, model={"dtype": "bfloat16"}, publish={"max_shard_size": "40KB"}, onnx={"enabled": False}
    )
    pipeline.run(recipe, output_dir=tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    model, _, _ = load_exported(tmp_path / "out")
    assert model.dtype == torch.bfloat16


def test_summary_says_what_was_done(exported_summary):
    console = Console(width=300, file=io.StringIO())
    console.print(exported_summary)
    text = console.file.getvalue()
    for words in ("Written", "13 of 14 decoder linears", "Perplexity", "Verified onnx_kernel", "logits bit-equal"):
        assert words in text
    assert f'from_pretrained("{exported_summary.folder}"' in exported_summary.snippets()


def test_snippets_run(exported_summary):
    snippets = exported_summary.snippets()
    assert snippets.count("from_pretrained(") == 2
    scope: dict[str, object] = {}
    exec(snippets, scope)
    assert type(scope["model"]).__name__ == "Model"  # the last of the three, onnxruntime-genai's


def test_verify_again(exported):
    before = contents(exported)
    report = pipeline.verify_folder(exported).to_dict()
    assert report["modules"]["onnx_kernel"]["kept_channels_equal"] is True
    assert contents(exported) == before


def test_generate_is_the_same_everywhere(exported):
    texts = {backend: generate(exported, PROMPT, backend=backend, max_new_tokens=12) for backend in BACKENDS}
    assert len(set(texts.values())) == 1, texts
    assert texts["torch"]
    assert generate(exported, PROMPT, dense=True, max_new_tokens=12) != texts["torch"]


def test_dense_generation_is_torchs(exported):
    with pytest.raises(UserError, match="--backend torch"):
        generate(exported, PROMPT, backend="onnx", dense=True)


def test_tokenizer_reloads_with_transformers_alone(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    assert tokenizer.decode(tokenizer(PROMPT)["input_ids"]) == PROMPT


@pytest.mark.parametrize("backend", BACKENDS)
def test_folders_that_no_export_wrote(backend, tiny_source, tmp_path):
    for folder, what in ((tmp_path, "holds no exported model"), (tiny_source, "holds a llama model")):
        with pytest.raises(UserError, match=what):
            generate(folder, PROMPT, backend=backend)
