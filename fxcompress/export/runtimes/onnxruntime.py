"""onnxruntime on the CPU: open a file, feed it tensors, read tensors back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from torch import Tensor

from fxcompress.errors import ExportError
from fxcompress.export.onnx.reason import essential_reason
from fxcompress.export.onnx.write import OnnxFile

Array = np.ndarray[Any, np.dtype[Any]]
Session = Any  # onnxruntime ships no types


def open_session(
    path: str | os.PathLike[str], *, threads: int = 1, optimize: bool = True
) -> Session:
    """A fresh CPU session with a fixed number of threads.

    All graph optimisations are on, the layout ones too: without those a convolution is half again
    as slow (onnxruntime's own default as well, but said here). Threads stop spinning when a run
    ends, so that a session does not slow the one that is timed next.

    Raises:
        ExportError: onnxruntime cannot load the file, or has no kernel for one of its operators.
    """
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors share no base class
        dtypes = "NOT_IMPLEMENTED" in str(error) or "Type Error" in str(error)
        hint = "; the CPU provider has every operator in float32 only" if dtypes else ""
        raise ExportError(
            f"onnxruntime cannot load {os.fspath(path)}: {essential_reason(error)}{hint}"
        ) from error


def run_session(session: Session, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Run once and return every output by name.

    Raises:
        ExportError: onnxruntime refuses the inputs or fails on the way.
    """
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))
    except Exception as error:
        shapes = ", ".join(f"{name} {array.dtype}{array.shape}" for name, array in feed.items())
        raise ExportError(f"onnxruntime fails on {shapes}: {essential_reason(error)}") from error


def feed_for(file: OnnxFile, tensors: Sequence[Tensor]) -> dict[str, Array]:
    """Match tensors to a file's inputs, in order.

    Raises:
        ExportError: There are more or fewer of them, or onnxruntime has no such dtype on the CPU.
    """
    if len(tensors) != len(file.inputs):
        raise ExportError(
            f"{file.path} takes {len(file.inputs)} inputs ({', '.join(file.inputs)}) but is given "
            f"{len(tensors)} tensors; was it exported from this program?"
        )
    return {name: _array(name, tensor) for name, tensor in zip(file.inputs, tensors, strict=True)}


def _array(name: str, tensor: Tensor) -> Array:
    try:
        array: Array = tensor.detach().cpu().contiguous().numpy()
    except TypeError as error:
        raise ExportError(
            f"input {name!r} is {tensor.dtype}, which onnxruntime does not take on the CPU; "
            "export the program in float32"
        ) from error
    return array
