"""ONNX files, onnxruntime and TensorRT: everything that takes a program out of Python."""

from fxcompress.export.check import CheckResult, check
from fxcompress.export.exportable import Example, Exportable
from fxcompress.export.onnx import OnnxFile, to_onnx

__all__ = ["CheckResult", "Example", "Exportable", "OnnxFile", "check", "to_onnx"]
