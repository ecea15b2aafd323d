"""TensorRT and TensorRT-RTX on a GPU: engines, and ONNX files built into engines first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxcompress.errors import ExportError
from fxcompress.export.onnx.write import describe
from fxcompress.export.runtimes.protocol import Array, Input, Runtime, Session, Source, register
from fxcompress.export.runtimes.tensorrt import Shape, plan_of
from fxcompress.export.runtimes.tensorrt_library import TensorRt, load_library, logged

_DTYPES = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
}


class TensorRtRuntime(Runtime):
    """One of NVIDIA's two libraries; `name` is also that of its Python module."""

    def version(self) -> str:
        """The library's."""
        return str(load_library(self.name).__version__)

    def takes(self, source: Source) -> bool:
        """Files."""
        return isinstance(source, str | os.PathLike)

    @contextmanager
    def open(self, source: Source, *, threads: int = 1, optimize: bool = True) -> Iterator[Session]:
        """An engine as it is, an ONNX file as the engine that `build_engine` makes by default.

        The GPU does the work, so threads do not matter; a builder always optimises.
        """
        assert isinstance(source, str | os.PathLike)
        if not torch.cuda.is_available():
            raise ExportError(
                f"running {os.fspath(source)} in {self.name} needs an NVIDIA GPU and a CUDA build "
                "of torch, and torch.cuda.is_available() is False"
            )
        trt = load_library(self.name)
        if os.fspath(source).endswith(".onnx"):
            plan = plan_of(describe(source), trt)
        else:
            plan = _read(source)
        yield EngineSession(os.fspath(source), plan, logged(trt))


class TensorRtFull(TensorRtRuntime):
    """TensorRT."""

    name = "tensorrt"
    package = "tensorrt, from NVIDIA's own index"


class TensorRtRtx(TensorRtRuntime):
    """TensorRT-RTX."""

    name = "tensorrt_rtx"
    package = "fxcompress[trt-rtx]"


class EngineSession(Session):
    """An engine with a context on the GPU."""

    def __init__(self, path: str, plan: bytes, library: TensorRt) -> None:
        self.path, self.library = path, library
        self.runtime = library.trt.Runtime(library.logger)  # it has to outlive the engine
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise ExportError(f"{library.title} cannot load {path}: {library.errors()}")
        self.context = self.engine.create_execution_context()
        self.stream = torch.cuda.Stream()
        self.bound: dict[str, Tensor] = {}

    @cached_property
    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Those of the inputs, and those of the outputs."""
        places = range(self.engine.num_io_tensors)
        every = [self.engine.get_tensor_name(place) for place in places]
        mode = self.library.trt.TensorIOMode.INPUT
        inputs = [name for name in every if self.engine.get_tensor_mode(name) == mode]
        return tuple(inputs), tuple(name for name in every if name not in inputs)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """As the engine declares them."""
        shapes = {name: tuple(self.engine.get_tensor_shape(name)) for name in self.names[0]}
        return tuple(
            Input(name, self._dtype(name), tuple(None if n == -1 else n for n in shape))
            for name, shape in shapes.items()
        )

    def bind(self, tensors: Sequence[Tensor]) -> Callable[[], dict[str, Tensor]]:
        """A run with all tensors on the GPU, waited for."""
        names = self.names[0]
        if len(tensors) != len(names):
            raise ExportError(
                f"{self.path} takes {len(names)} inputs ({', '.join(names)}) but is given "
                f"{len(tensors)} tensors; was it built from this program?"
            )
        self.place(dict(zip(names, tensors, strict=True)))

        def call() -> dict[str, Tensor]:
            self.enqueue()
            self.stream.synchronize()
            return {name: self.bound[name] for name in self.names[1]}

        torch.cuda.synchronize()  # the tensors were filled on another stream
        return call

    def named(self, result: Any) -> dict[str, Array]:
        """By the engine's names of outputs."""
        return {name: tensor.cpu().numpy() for name, tensor in result.items()}

    def ones(self, shapes: Mapping[str, Shape]) -> list[Tensor]:
        """Inputs of these shapes, or the usual ones: valid indices, and masks that hide nothing."""
        return [
            torch.ones(shapes.get(name) or self._usual(name), dtype=self._dtype(name))
            for name in self.names[0]
        ]

    def place(self, tensors: Mapping[str, Tensor]) -> None:
        """Give every input and output of the engine a tensor on the GPU."""
        for name, tensor in tensors.items():
            if not self.context.set_input_shape(name, tuple(tensor.shape)):
                raise ExportError(
                    f"the engine does not take shape {tuple(tensor.shape)} for its input {name!r}"
                )
            self.bound[name] = tensor.to("cuda", self._dtype(name)).contiguous()
        for name in self.names[1]:
            shape = tuple(self.context.get_tensor_shape(name))
            self.bound[name] = torch.ones(shape, dtype=self._dtype(name), device="cuda")
        for name, tensor in self.bound.items():
            self.context.set_tensor_address(name, tensor.data_ptr())

    def enqueue(self) -> None:
        """Start a run on the session's stream.

        Raises:
            ExportError: The library refuses.
        """
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            errors = self.library.errors()
            raise ExportError(f"{self.library.title} cannot run {self.path}: {errors}")

    def _dtype(self, name: str) -> torch.dtype:
        return _DTYPES[self.engine.get_tensor_dtype(name).name]

    def _usual(self, name: str) -> Shape:
        declared = tuple(self.engine.get_tensor_shape(name))
        profile = self.engine.get_tensor_profile_shape(name, 0) if -1 in declared else None
        return declared if profile is None else tuple(profile[1])


def _read(engine: str | os.PathLike[str]) -> bytes:
    try:
        return Path(engine).read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read the engine {os.fspath(engine)}: {error}") from error


register(TensorRtFull())
register(TensorRtRtx())
