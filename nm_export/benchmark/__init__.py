"""Speed: operators beside ONNX Runtime's, and models beside their dense twins."""

from nm_export.benchmark.decoder import benchmark_decoder
from nm_export.benchmark.model import ModelBenchmark, benchmark_model
from nm_export.benchmark.operators import OperatorBenchmark, benchmark_operators

__all__ = ["ModelBenchmark", "OperatorBenchmark", "benchmark_decoder", "benchmark_model", "benchmark_operators"]
