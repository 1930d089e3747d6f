"""Which exporter writes the dense graph, and what is said about it."""

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig

from nm_export.errors import NMExportError, UserError
from nm_export.onnx import exporters
from nm_export.onnx.base_graph import BaseGraph
from nm_export.onnx.exporters import build_graph, choose_graph
from tests.onnx.tiny import SIZES, dense


@pytest.fixture
def generic(monkeypatch):
    """An exporter of transformers that writes nothing and is always right."""

    def build(model, directory, *, share_embedding):
        return BaseGraph(directory / "model.onnx", {}, exporter="generic")

    check = exporters.check_base_graph
    monkeypatch.setattr(exporters, "build_generic_graph", build)
    monkeypatch.setattr(
        exporters, "check_base_graph", lambda graph, model: 0.0 if graph.exporter == "generic" else check(graph, model)
    )


def test_the_builder_is_preferred(tokenizer_dir, tmp_path, capfd):
    graph, difference = choose_graph(dense(), tokenizer_dir, tmp_path)
    assert graph.exporter == "builder"
    assert difference < 1e-5
    assert capfd.readouterr() == ("", "")


def test_what_the_builder_refuses_goes_the_other_way(generic, tokenizer_dir, tmp_path, capfd):
    model = dense(config=LlamaConfig(**{**SIZES, "num_attention_heads": 8}))
    graph, _ = choose_graph(model, tokenizer_dir, tmp_path)
    assert graph.exporter == "generic"
    said = " ".join(capfd.readouterr().err.split())
    assert "heads of 8 channels. The exporter of transformers takes over; onnxruntime-genai does not run its" in said


def test_what_the_builder_renders_wrongly_goes_the_other_way(generic, tokenizer_dir, tmp_path, monkeypatch, capfd):
    model, build = dense(), exporters.build_base_graph

    def wrong(model, *args, **kwargs):
        graph = build(model, *args, **kwargs)
        model.model.layers[1].mlp.down_proj.weight.data[0, 0] += 0.5
        return graph

    monkeypatch.setattr(exporters, "build_base_graph", wrong)
    graph, _ = choose_graph(model, tokenizer_dir, tmp_path)
    assert graph.exporter == "generic"
    assert list(tmp_path.iterdir()) == []  # nothing is left of the wrong one
    assert "LlamaForCausalLM differs from the torch model by" in " ".join(capfd.readouterr().err.split())


def test_a_builder_that_breaks_is_a_sentence(tokenizer_dir, tmp_path, monkeypatch):
    def breaks(*args, **kwargs):
        raise KeyError("rope_type")

    monkeypatch.setattr(exporters, "build_base_graph", breaks)
    with pytest.raises(NMExportError, match=r"fails on LlamaForCausalLM \(KeyError: 'rope_type'\)\.$"):
        build_graph(dense(), tokenizer_dir, tmp_path)


def test_where_both_fail_both_are_named(tokenizer_dir, tmp_path):
    config = MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1, state_size=4)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match="MambaForCausalLM cannot be exported to ONNX; leave ONNX out") as failure:
        choose_graph(model, tokenizer_dir, tmp_path)
    assert "builder of onnxruntime-genai does not know MambaForCausalLM." in str(failure.value)
    assert "does not run with a cache of keys and values of every token" in str(failure.value)
    with pytest.raises(UserError, match=r"set onnx\.exporter to auto"):
        choose_graph(model, tokenizer_dir, tmp_path, exporter="builder")


def test_a_missing_package_is_named(tokenizer_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("nm_export.onnx.extras.find_spec", lambda module: None)
    with pytest.raises(UserError, match=r'pip install "nm_export\[genai\]".*pip install "nm_export\[export\]"'):
        choose_graph(dense(), tokenizer_dir, tmp_path)
