"""torch on the CPU: programs and modules themselves, in evaluation mode."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.errors import ExportError
from fxcompress.export.onnx.exportable import (
    Example,
    Exportable,
    Inputs,
    failure_on,
    inference_module,
    inputs_of,
)
from fxcompress.export.onnx.names import named_outputs
from fxcompress.export.runtimes.protocol import Array, Input, Runtime, Session, Source, register


class Torch(Runtime):
    """torch itself."""

    name = "torch"
    package = "torch"

    def version(self) -> str:
        """Torch's."""
        return str(torch.__version__)

    def takes(self, source: Source) -> bool:
        """Anything but files."""
        return not isinstance(source, str | os.PathLike)

    @contextmanager
    def open(self, source: Source, *, threads: int = 1, optimize: bool = True) -> Iterator[Session]:
        """A module is run as it is: there is no graph to optimise."""
        assert not isinstance(source, str | os.PathLike)
        plain = isinstance(source, nn.Module)
        program = Example(source, ()) if isinstance(source, nn.Module) else source
        inputs = None if plain else inputs_of(program)
        with _threads(threads), torch.inference_mode(), inference_module(program) as module:
            yield TorchSession(module, program, inputs)


class TorchSession(Session):
    """A module that is ready to run; a plain one does not say what it takes."""

    def __init__(self, module: nn.Module, program: Exportable, shape: Inputs | None) -> None:
        self.module, self.program, self.shape = module, program, shape

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Those of a program's example."""
        if self.shape is None:
            return ()
        pairs = zip(self.shape.names, self.shape.tensors, self.shape.dynamic, strict=True)
        return tuple(
            Input(name, t.dtype, tuple(None if d in free else n for d, n in enumerate(t.shape)))
            for name, t, free in pairs
        )

    @property
    def example(self) -> tuple[Tensor, ...] | None:
        """A program's own."""
        return None if self.shape is None else self.shape.tensors

    def bind(self, tensors: Sequence[Tensor]) -> Callable[[], Any]:
        """The module's own call."""
        shape = self.shape or inputs_of(Example(self.module, tuple(tensors)))
        if len(shape.tensors) != len(tensors):
            raise ExportError(
                f"a program takes {len(shape.tensors)} tensors ({', '.join(shape.names)}) but is "
                f"given {len(tensors)}"
            )
        args, kwargs = shape.arguments(tensors)

        def call() -> Any:
            try:
                return self.module(*args, **kwargs)
            except Exception as error:
                raise failure_on(shape, tensors, error) from error

        return call

    def named(self, result: Any) -> dict[str, Array]:
        """By the keys of what the module returns."""
        taken = () if self.shape is None else self.shape.names
        return {name: t.cpu().numpy() for name, t in named_outputs(result, taken).items()}

    def profile(self, tensors: Sequence[Tensor], rounds: int = 10) -> Mapping[str, float]:
        """By torch's own profiler, one entry for each kind of operator."""
        call = self.bind(tensors)
        activity = torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[activity]) as profiler:
            for _ in range(rounds):
                call()
        events = profiler.key_averages()
        return {event.key: event.self_cpu_time_total / 1e3 / rounds for event in events}


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


register(Torch())
