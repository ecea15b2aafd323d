"""ONNX files, onnxruntime and TensorRT: everything that takes a program out of Python."""

from fxcompress.export.benchmark import benchmark
from fxcompress.export.check import CheckResult, check
from fxcompress.export.exportable import Example, Exportable
from fxcompress.export.latency import BenchmarkResult
from fxcompress.export.onnx import OnnxFile, to_onnx

__all__ = [
    "BenchmarkResult",
    "CheckResult",
    "Example",
    "Exportable",
    "OnnxFile",
    "benchmark",
    "check",
    "to_onnx",
]
