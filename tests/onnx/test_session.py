"""Sessions: with the library, without it, through links."""

import warnings

import numpy as np
import pytest

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
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda model, options, providers: opened.update(to=providers))
    monkeypatch.setattr("nm_export.ops.register", lambda options: pytest.fail("compiled operators are for the CPU"))
    with pytest.warns(UserWarning, match="CPUExecutionProvider only"):
        create_session(publish("llama", "weight_norm").result.model_path, providers=["CUDAExecutionProvider"])
    assert opened["to"] == ["CUDAExecutionProvider"]


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
