"""A Hub on loopback that this process publishes to, and a small folder as an export writes it."""

import hashlib
import json
from pathlib import Path

import huggingface_hub
import onnx
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from nm_export import modeling
from nm_export.publishing import hub_requests
from tests.publishing.hub_server import WRITE, HubServer

CODE = Path(modeling.__file__).parent


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The server. The client's pauses are kept in `pauses` instead of being waited for."""
    for name, value in {
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", WRITE)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        server.pauses = []
        monkeypatch.setattr(_http.time, "sleep", server.pauses.append)
        monkeypatch.setattr(hub_requests, "TIMEOUT_SECONDS", 5.0)
        yield server
        huggingface_hub.utils.close_session()


def content(seed: str, size: int) -> bytes:
    """Bytes that look random and are the same everywhere."""
    return b"".join(hashlib.sha256(f"{seed} {number}".encode()).digest() for number in range(-(-size // 32)))[:size]


def weights(seed: str, size: int) -> bytes:
    """A safetensors file of `size` bytes that holds one tensor."""
    header = b'{"weight":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}'
    numbers = size - 8 - 96
    header = (header % (numbers, numbers)).ljust(96)
    return len(header).to_bytes(8, "little") + header + content(seed, numbers)


def graph(data: str, size: int) -> bytes:
    """An ONNX graph whose one weight is the first `size` bytes of the file `data` beside it."""
    tensor = onnx.TensorProto(name="weight", data_type=onnx.TensorProto.UINT8, dims=[size])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": data, "offset": 0, "length": size}.items():
        tensor.external_data.add(key=key, value=str(value))
    made = onnx.helper.make_graph([], "graph", [], [], initializer=[tensor])
    return onnx.helper.make_model(made).SerializeToString()


def verification() -> dict:
    checks = {
        name: {"modules": 2, "kept_channels_equal": True, "largest_error": 0.0} for name in ("reloaded", "onnx_kernel")
    }
    return {"modules": checks, "reloaded_logits_equal": True}


def write_files(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


@pytest.fixture
def folder(tmp_path):
    """What publishing looks at of an exported folder: 40 kB of weights, 30 kB of ONNX data."""
    return write_files(
        tmp_path / "out",
        {
            "README.md": '---\nlicense: mit\n---\n\nfrom_pretrained("out", trust_remote_code=True)\n',
            "config.json": '{"model_type": "nm_sparse"}\n',
            "measurements.json": json.dumps({"verification": verification(), "onnx": True}),
            "model.safetensors": weights("weights", 40_000),
            **{path.name: path.read_bytes() for path in sorted(CODE.glob("*_nm_sparse.py"))},
            "nm_export.json": "{}\n",
            "onnx/model.onnx": graph("model.onnx.data", 30_000),
            "onnx/model.onnx.data": content("data", 30_000),
            "recipe.yaml": "model: {source: some/base}\npublish: {repo_id: user/recipes-own}\n",
        },
    )
