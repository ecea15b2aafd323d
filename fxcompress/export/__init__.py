"""ONNX files, onnxruntime and TensorRT: everything that takes a program out of Python."""

from fxcompress.export.checks.check import CheckResult, check
from fxcompress.export.onnx.exportable import Example, Exportable
from fxcompress.export.onnx.write import OnnxFile, to_onnx
from fxcompress.export.runtimes.tensorrt import EngineFile, ParsedNetwork, build_engine, parse
from fxcompress.export.timing.benchmark import benchmark
from fxcompress.export.timing.engine_timing import EngineTiming, time_engine
from fxcompress.export.timing.latency import BenchmarkResult

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
