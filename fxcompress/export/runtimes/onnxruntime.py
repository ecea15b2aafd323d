"""onnxruntime on the CPU."""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from fxcompress.errors import ExportError
from fxcompress.export.onnx.reason import essential_reason
from fxcompress.export.runtimes.protocol import Array, Input, Runtime, Session, Source, register

_DTYPES = {
    "tensor(bool)": torch.bool,
    "tensor(double)": torch.float64,
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
}


class OnnxRuntime(Runtime):
    """onnxruntime with its CPU provider."""

    name = "onnxruntime"
    package = "onnxruntime"

    def version(self) -> str:
        """Onnxruntime's."""
        return str(onnxruntime.__version__)

    def takes(self, source: Source) -> bool:
        """Files."""
        return isinstance(source, str | os.PathLike)

    @contextmanager
    def open(self, source: Source, *, threads: int = 1, optimize: bool = True) -> Iterator[Session]:
        """All graph optimisations are on, the layout ones too: without those a convolution is half
        again as slow (onnxruntime's own default as well, but said here). Threads stop spinning when
        a run ends, so that a session does not slow the one that is timed next.
        """
        assert isinstance(source, str | os.PathLike)
        yield OrtSession(Path(source), _options(threads, optimize))


class OrtSession(Session):
    """A file that onnxruntime has loaded."""

    def __init__(self, path: Path, options: Any) -> None:
        self.path, self.options = path, options
        self.opened = _loaded(path, options)
        self.outputs = [output.name for output in self.opened.get_outputs()]

    @property
    def inputs(self) -> tuple[Input, ...]:
        """As the file declares them."""
        return tuple(
            Input(
                value.name,
                _DTYPES.get(value.type),
                tuple(size if isinstance(size, int) else None for size in value.shape),
            )
            for value in self.opened.get_inputs()
        )

    def bind(self, tensors: Sequence[Tensor]) -> Callable[[], list[Array]]:
        """The session's own run, on arrays that share the tensors' memory."""
        names = [value.name for value in self.inputs]
        if len(tensors) != len(names):
            raise ExportError(
                f"{self.path} takes {len(names)} inputs ({', '.join(names)}) but is given "
                f"{len(tensors)} tensors; was it exported from this program?"
            )
        feed = {name: _array(name, tensor) for name, tensor in zip(names, tensors, strict=True)}

        def call() -> list[Array]:
            try:
                found: list[Array] = self.opened.run(self.outputs, feed)
            except Exception as error:  # its errors share no base class
                given = ", ".join(
                    f"{name} {array.dtype}{array.shape}" for name, array in feed.items()
                )
                raise ExportError(
                    f"onnxruntime fails on {given}: {essential_reason(error)}"
                ) from error
            return found

        return call

    def named(self, result: Any) -> dict[str, Array]:
        """By the file's names of outputs."""
        return dict(zip(self.outputs, result, strict=True))

    def profile(self, tensors: Sequence[Tensor], rounds: int = 10) -> Mapping[str, float]:
        """By onnxruntime's profiler, one entry for each node of the optimised graph."""
        with tempfile.TemporaryDirectory() as folder:
            options = self.options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            twin = OrtSession(self.path, lambda: options)
            call = twin.bind(tensors)
            for _ in range(rounds):
                call()
            events = json.loads(Path(twin.opened.end_profiling()).read_text())
        return _by_node(events, rounds)


def _by_node(events: Sequence[Mapping[str, Any]], rounds: int) -> dict[str, float]:
    times: dict[str, float] = defaultdict(float)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            times[name.removesuffix("_kernel_time")] += event["dur"] / 1e3 / rounds
    return dict(times)


def _options(threads: int, optimize: bool) -> Callable[[], Any]:
    def make() -> Any:
        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        options.graph_optimization_level = level
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Stored weights are multiplied in float32; by default activations are rounded to 8 bits.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        return options

    return make


def _loaded(path: Path, options: Callable[[], Any]) -> Any:
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path), options(), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors share no base class
        dtypes = "NOT_IMPLEMENTED" in str(error) or "Type Error" in str(error)
        hint = "; the CPU provider has every operator in float32 only" if dtypes else ""
        raise ExportError(
            f"onnxruntime cannot load {path}: {essential_reason(error)}{hint}"
        ) from error


def _array(name: str, tensor: Tensor) -> Array:
    try:
        array: Array = tensor.detach().cpu().contiguous().numpy()
    except TypeError as error:
        raise ExportError(
            f"input {name!r} is {tensor.dtype}, which onnxruntime does not take on the CPU; "
            "export the program in float32"
        ) from error
    return array


register(OnnxRuntime())
