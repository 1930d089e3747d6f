"""Speed of an exported model beside its dense twin."""

from nm_export.benchmark.model import ModelBenchmark, benchmark_model

__all__ = ["ModelBenchmark", "benchmark_model"]
