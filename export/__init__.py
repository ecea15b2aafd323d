"""ONNX files, onnxruntime and TensorRT: everything that takes a program out of Python."""

from fxcompress.export.benchmark import benchmark
from fxcompress.export.check import CheckResult, check
from fxcompress.export.engine_timing import EngineTiming, time_engine
from fxcompress.export.exportable import Example, Exportable
from fxcompress.export.latency import BenchmarkResult
from fxcompress.export.onnx import OnnxFile, to_onnx
from fxcompress.export.tensorrt import EngineFile, ParsedNetwork, build_engine, parse

__all__ = [
    "BenchmarkResult",
    "CheckResult",
    "EngineFile",
    "EngineTiming",
    "Example",
    "Exportable",
    "OnnxFile",
    "ParsedNetwork",
    "benchmark",
    "build_engine",
    "check",
    "parse",
    "time_engine",
    "to_onnx",
]
