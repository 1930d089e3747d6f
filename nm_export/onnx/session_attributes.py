"""What programs ask of optimum's ONNX models and of torch modules, beside calling them."""

from pathlib import Path
from typing import Any

import torch

from nm_export.onnx.call_inputs import InputError

_FLOAT32 = (torch.float32, "float32", None)


class SessionAttributes:
    """Attributes of optimum's ORT models; methods of torch modules that change nothing here, or are refused."""

    model: Any
    path: Path
    training = False

    @property
    def session(self) -> Any:
        """The onnxruntime.InferenceSession."""
        return self.model

    @property
    def providers(self) -> list[str]:
        """Names of the session's execution providers."""
        return list(self.model.get_providers())

    @property
    def provider(self) -> str:
        """Name of the first of them."""
        return self.providers[0]

    @property
    def provider_options(self) -> dict[str, Any]:
        """Options of each, by name."""
        return dict(self.model.get_provider_options())

    @property
    def use_io_binding(self) -> bool:
        """Whether runs are bound to the caller's memory, as all are."""
        return True

    @property
    def model_save_dir(self) -> Path:
        """Folder of the graph's file."""
        return self.path.parent

    @property
    def input_names(self) -> dict[str, int]:
        """Names of the graph's inputs, with their places."""
        return {value.name: index for index, value in enumerate(self.model.get_inputs())}

    @property
    def output_names(self) -> dict[str, int]:
        """Names of the graph's outputs, with their places."""
        return {value.name: index for index, value in enumerate(self.model.get_outputs())}

    @property
    def can_use_cache(self) -> bool:
        """Whether the graph takes a cache, as all do."""
        return True

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model: it is on the CPU, in float32.

        Raises:
            InputError: another device or dtype.
        """
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.dtype):
                check_dtype(value)
            elif value is not None and not isinstance(value, bool):
                check_device(value)
        return self

    def cpu(self) -> Any:
        """Return the model."""
        return self

    def float(self) -> Any:
        """Return the model."""
        return self

    def eval(self) -> Any:
        """Return the model."""
        return self

    def train(self, mode: bool = True) -> Any:
        """Return the model; only `mode=False`."""
        if mode:
            raise InputError("An ONNX graph is not trained: train the PyTorch model and export it again.")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Return the model; only `requires_grad=False`."""
        return self.train(requires_grad)

    def cuda(self, *_: Any) -> Any:
        """Refuse."""
        return check_device("cuda")

    def half(self) -> Any:
        """Refuse."""
        return check_dtype(torch.float16)

    def bfloat16(self) -> Any:
        """Refuse."""
        return check_dtype(torch.bfloat16)

    def set_sparsity(self, enabled: bool) -> None:
        """Leave sparsity on; a graph has no dense branch."""
        if not enabled:
            raise InputError(
                "The ONNX graph has no dense branch: nm_export.onnx.build_dense_twin writes a dense graph of the same "
                "weights, and the PyTorch model can be switched."
            )


def check_device(device: Any) -> None:
    """Raise an InputError unless a device is the CPU."""
    try:
        kind = "cpu" if device == -1 else torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{device!r:.80} is no device.") from error
    if kind != "cpu":
        raise InputError(
            f"The model takes and gives tensors on the CPU, not on {device}; where the graph runs, the argument "
            "providers of from_pretrained says."
        )


def check_dtype(dtype: Any) -> None:
    """Raise an InputError unless a dtype is float32."""
    if dtype not in _FLOAT32:
        raise InputError(
            f"The graph computes in float32, not {str(dtype).removeprefix('torch.')}; its weights may be int4 or int8."
        )
