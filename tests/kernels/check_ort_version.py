"""Run the operator library on the ONNX Runtime of this interpreter, with NumPy and nothing else.

Usage: python check_ort_version.py LIBRARY MODEL PRODUCT

MODEL is one NMTopK of 8:16 with dynamic mean and variance correction and K = 64, PRODUCT one NMSparseMatMul of a
float16 weight: this interpreter has no package that could make them. Ends with an exception unless the results are
right, or, before ONNX Runtime 1.17, unless the library is refused in one sentence.
"""

import sys

import numpy as np
import onnxruntime as ort


def main(library: str, model: str, product: str) -> None:
    options = ort.SessionOptions()
    if tuple(int(part) for part in ort.__version__.split(".")[:2]) < (1, 17):
        try:
            options.register_custom_ops_library(library)
        except Exception as error:
            if "need onnxruntime >= 1.17; this is " + ort.__version__ not in str(error):
                raise
            print(f"onnxruntime {ort.__version__}: refused as it should be: {error}")
            return
        raise AssertionError("an ONNX Runtime that is too old took the library")

    options.register_custom_ops_library(library)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for shape in [(1, 1, 64), (3, 50, 64), (2, 0, 64)]:
        x = rng.standard_normal(shape).astype(np.float32)
        score, shift = np.exp(rng.standard_normal(64)).astype(np.float32), np.zeros(64, np.float32)
        values, token_shift = session.run(None, {"x": x, "score": score, "shift": shift})
        mean = x.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(token_shift, mean)
        z = x - mean
        s = (np.abs(z) * score).reshape(*shape[:-1], 4, 16)
        rank = np.argsort(np.argsort(-s, axis=-1, kind="stable"), axis=-1)
        p = np.where((rank < 8).reshape(shape), z, np.float32(0))
        nu = np.sqrt(z.var(axis=-1, keepdims=True, dtype=np.float64) / p.var(axis=-1, keepdims=True, dtype=np.float64))
        np.testing.assert_allclose(values, nu.astype(np.float32) * p, rtol=3e-7)
    shapes = [output.shape for output in session.get_outputs()]
    session = ort.InferenceSession(product, options, providers=["CPUExecutionProvider"])
    for tokens in (0, 1, 20):
        values = rng.standard_normal((tokens, 64)).astype(np.float32) * (rng.random((tokens, 64)) < 0.5)
        weight = rng.standard_normal((64, 300)).astype(np.float16)
        vectors = {"bias": (300,), "token_shift": (tokens, 1), "offset": (300,)}
        inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in vectors.items()}
        (y,) = session.run(None, {"values": values, "weight": weight, **inputs})
        exact = values @ weight.astype(np.float32) + inputs["token_shift"] * inputs["offset"] + inputs["bias"]
        np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-4)
    print(f"onnxruntime {ort.__version__}: right, outputs inferred as {shapes}")


if __name__ == "__main__":
    main(*sys.argv[1:])
