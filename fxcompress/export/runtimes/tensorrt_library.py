"""TensorRT and TensorRT-RTX as one library: which is here, its log, its ONNX parser.

TensorRT-RTX (the extra ``trt-rtx``) parses and builds without a GPU. TensorRT itself needs one for
building, is installed from NVIDIA's own index, and is preferred where there is a GPU.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch

from fxcompress.errors import ExportError
from fxcompress.export.onnx.write import OnnxFile


def load_library(name: str | None = None) -> Any:
    """The module ``tensorrt`` or ``tensorrt_rtx``, whichever is installed.

    Raises:
        ExportError: Neither is, or not the one asked for.
    """
    preferred = ("tensorrt", "tensorrt_rtx")
    names = (name,) if name else preferred if torch.cuda.is_available() else preferred[::-1]
    reasons = []
    for candidate in names:
        try:
            return importlib.import_module(candidate)
        except ImportError as error:
            reasons.append(f"{candidate}: {error}")
    raise ExportError(
        f"no TensorRT here ({'; '.join(reasons)}); pip install 'fxcompress[trt-rtx]' parses and "
        "builds without a GPU, or install tensorrt from NVIDIA's index for GPUs it alone supports"
    )


@dataclass(frozen=True)
class TensorRt:
    """The objects of one use of a library; they must live as long as each other."""

    trt: Any
    messages: list[tuple[Any, str]]
    logger: Any
    builder: Any = None
    network: Any = None
    parser: Any = None

    @property
    def title(self) -> str:
        """Library and version."""
        return f"{self.trt.__name__} {self.trt.__version__}"

    def errors(self) -> str:
        """The library's own error lines."""
        worst = (self.trt.ILogger.Severity.ERROR, self.trt.ILogger.Severity.INTERNAL_ERROR)
        lines = [text.strip() for severity, text in self.messages if severity in worst]
        return " ".join(lines) or "the library gives no reason"


def logged(trt: Any) -> TensorRt:
    """A logger that keeps what it is told: it would print otherwise."""
    messages: list[tuple[Any, str]] = []
    log = {"log": lambda self, severity, text: messages.append((severity, text))}
    return TensorRt(trt, messages, type("Collector", (trt.ILogger,), log)())


def parsed(file: OnnxFile, trt: Any) -> TensorRt:
    """Let the library's parser read a file.

    Raises:
        ExportError: It refuses; its errors and their nodes are listed.
    """
    empty = logged(trt)
    try:
        builder = trt.Builder(empty.logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, empty.logger)
    except (TypeError, RuntimeError) as error:
        raise ExportError(f"{empty.title} cannot start: {error}; {empty.errors()}") from error
    whole = TensorRt(trt, empty.messages, empty.logger, builder, network, parser)
    if not parser.parse_from_file(str(file.path)):
        faults = [parser.get_error(place) for place in range(parser.num_errors)]
        listed = "; ".join(_fault(fault) for fault in faults) or whole.errors()
        raise ExportError(f"{empty.title} cannot parse {file.path}: {listed}")
    return whole


def _fault(fault: Any) -> str:
    node = f"node {fault.node_name()!r} ({fault.node_operator()}): " if fault.node_name() else ""
    return f"{node}{fault.desc()}"
