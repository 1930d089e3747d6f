"""Sizes for people, and what makes a folder smaller."""

SMALLER = "`publish.weights: reference`, `--skip-onnx` and `--set onnx.precision=int4` make it smaller"


def size_in_words(number: float) -> str:
    """Bytes as B, kB, MB or GB."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.2f} GB"


def smaller(total: int, onnx: int) -> str:
    """How to make a folder smaller, in a few words, if more than half of it is its ONNX part; otherwise "".

    Args:
        total: bytes of the folder.
        onnx: bytes of its folder `onnx`.
    """
    return SMALLER if 2 * onnx > total else ""
