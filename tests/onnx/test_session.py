"""Sessions: with the library, without it, through links."""

import contextlib
import shutil
import warnings

import numpy as np
import onnxruntime
import pytest

from nm_export import ops
from nm_export.errors import NMExportError, UserError
from nm_export.onnx import create_session
from nm_export.onnx.session import empty_cache
from tests.onnx.tiny import tokens


def logits(session):
    feed = {"input_ids": tokens().numpy(), "attention_mask": np.ones((2, 12), np.int64)}
    return session.run(["logits"], feed | empty_cache(session, 2))[0]


def linked(folder, target):
    """The layout of the Hub's cache: a snapshot of links to files that are named by their content."""
    (target / "blobs").mkdir(parents=True)
    for number, path in enumerate(p for p in sorted(folder.rglob("*")) if p.is_file()):
        blob = target / "blobs" / f"{number:040x}"
        blob.write_bytes(path.read_bytes())
        link = target / "snapshot" / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return target / "snapshot"


def test_kernel_and_body_agree(publish):
    path = publish("llama", "weight_norm").result.model_path
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = logits(create_session(path, library=True))
        body = logits(create_session(path, library=False))
    np.testing.assert_allclose(compiled, body, rtol=1e-4, atol=1e-5)


def test_missing_library_warns_once_and_runs(publish, no_library):
    path = publish("llama", "weight_norm").result.model_path
    with pytest.warns(UserWarning, match="function bodies, slower than compiled") as caught:
        session = create_session(path)
    assert len(caught) == 1
    assert np.isfinite(logits(session)).all()
    with pytest.raises(UserError, match=r"missing\.so"):
        create_session(path, library=True)


def test_other_providers_run_the_body_and_say_so(publish, monkeypatch):
    opened = {}
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda model, options, providers: opened.update(to=providers))
    monkeypatch.setattr("nm_export.ops.register", lambda options: pytest.fail("compiled operators are for the CPU"))
    with pytest.warns(UserWarning, match="CPUExecutionProvider only, and CUDAExecutionProvider takes nodes"):
        create_session(publish("llama", "weight_norm").result.model_path, providers=["CUDAExecutionProvider"])
    assert opened["to"] == ["CUDAExecutionProvider"]


@pytest.mark.parametrize(
    "providers",
    [
        "CPUExecutionProvider",
        ["CUDAExecutionProvider", "CPUExecutionProvider"],
        [("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"],
        ["AzureExecutionProvider", "CPUExecutionProvider"],
    ],
)
def test_the_compiled_operators_run_wherever_the_nodes_end_on_the_cpu(publish, monkeypatch, providers):
    registered = []
    register = ops.register
    monkeypatch.setattr("nm_export.ops.register", lambda options: registered.append(register(options)))
    missing = not isinstance(providers, str) and "AzureExecutionProvider" not in providers
    with pytest.warns(UserWarning, match="left out") if missing else contextlib.nullcontext() as caught:
        session = create_session(publish("llama", "weight_norm").result.model_path, providers=providers)
    assert len(registered) == 1
    assert session.get_providers()[-1] == "CPUExecutionProvider"
    if missing:
        said = "CUDAExecutionProvider is not in this build of ONNX Runtime and is left out."
        assert [str(warning.message) for warning in caught] == [said]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"providers": "NoSuchProvider"}, "no execution provider 'NoSuchProvider'; available here: .*CPUExecution"),
        ({"providers": ["CUDAExecutionProvider"]}, "CUDAExecutionProvider is not in this build .* available here"),
        ({"providers": [3]}, "a name or a pair of a name and its options"),
        ({"provider_options": [{}, {}]}, "2 entries for 1 providers"),
        ({"providers": [("CPUExecutionProvider", {"a": 1})], "provider_options": {"a": 1}}, "not in both"),
    ],
)
def test_wrong_providers_are_refused(publish, arguments, message):
    path = publish("llama", "weight_norm").result.model_path
    with pytest.raises(UserError, match=message) as caught:
        create_session(path, **arguments)
    assert isinstance(caught.value, ValueError)  # as optimum raises it


def test_options_serve_several_sessions_and_keep_what_they_say(publish):
    path, options = publish("llama", "weight_norm").result.model_path, onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    first, second = (create_session(path, library=True, session_options=options) for _ in range(2))
    np.testing.assert_array_equal(logits(first), logits(second))
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(UserError, match="have the compiled operators already"):
        create_session(path, library=False, session_options=options)
    by_hand = onnxruntime.SessionOptions()
    ops.register(by_hand)
    with pytest.raises(UserError, match="have the compiled operators already"):
        create_session(path, session_options=by_hand)


def test_missing_weights_are_named(publish, tmp_path):
    shutil.copy(publish("llama", "weight_norm").result.model_path, tmp_path)
    with pytest.raises(UserError, match=r"model\.onnx\.data does not exist"):
        create_session(tmp_path / "model.onnx", library=False)


def test_links_are_followed(publish, tmp_path):
    published = publish("llama", "weight_norm")
    snapshot = linked(published.folder, tmp_path)
    session = create_session(snapshot / "onnx" / "model.onnx", library=False)
    expected = logits(create_session(published.result.model_path, library=False))
    np.testing.assert_array_equal(logits(session), expected)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"model\.onnx does not exist"):
        create_session(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(NMExportError, match=r"ONNX Runtime .* cannot open"):
        create_session(tmp_path / "model.onnx", library=False)


def test_a_broken_file_is_named_without_a_library_too(tmp_path, no_library):
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(NMExportError, match=r"model\.onnx cannot be read as an ONNX graph"):
        create_session(tmp_path / "model.onnx")
