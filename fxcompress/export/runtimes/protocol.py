"""What a runtime is, for all that runs files and programs without knowing which runtimes there are.

A runtime is one file: a class with these methods, and `register`. `check`, `benchmark` and the
search for who is to blame find it by its name.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fxcompress.arguments.registry import Registry
from fxcompress.errors import ExportError
from fxcompress.export.onnx.exportable import Exportable

Array = np.ndarray[Any, np.dtype[Any]]
Source = str | os.PathLike[str] | Exportable | nn.Module
"""What may be run: a file, a program, a plain module."""


@dataclass(frozen=True)
class Input:
    """A tensor that a session takes.

    Attributes:
        name: What the file or the program calls it.
        dtype: Its type; None where torch has none like it.
        shape: Its sizes, None where one may vary.
    """

    name: str
    dtype: torch.dtype | None
    shape: tuple[int | None, ...]


class Session(ABC):
    """A source opened in a runtime."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[Input, ...]:
        """What it takes, in order; empty where only a run can tell, as for a plain module."""

    @property
    def example(self) -> tuple[Tensor, ...] | None:
        """The inputs that come with the source, if any do."""
        return None

    @abstractmethod
    def bind(self, tensors: Sequence[Tensor]) -> Callable[[], Any]:
        """A function that runs once on these tensors and gives what the runtime itself gives: all
        that is timed.

        Raises:
            ExportError: The session takes another number of tensors, or other types; from the
                function, that the runtime refuses them or fails on the way.
        """

    @abstractmethod
    def named(self, result: Any) -> dict[str, Array]:
        """The outputs in order by name, from what the function of `bind` gave."""

    def run(self, tensors: Sequence[Tensor]) -> dict[str, Array]:
        """Run once on these tensors.

        Raises:
            ExportError: As `bind` and its function do.
        """
        return self.named(self.bind(tensors)())

    def profile(self, tensors: Sequence[Tensor], rounds: int = 10) -> Mapping[str, float]:
        """Milliseconds that each operator takes in one run, by the name the runtime has for it.

        Raises:
            ExportError: The runtime does not tell.
        """
        raise ExportError(f"{type(self).__name__} does not tell what its operators take")


class Runtime(ABC):
    """Something that runs exported files, or modules themselves.

    Attributes:
        name: What `check` and `benchmark` call it.
        package: What to install for it.
    """

    name: ClassVar[str]
    package: ClassVar[str]

    @abstractmethod
    def version(self) -> str:
        """The version that is installed.

        Raises:
            ExportError: None is; the message has `package`.
        """

    @abstractmethod
    def takes(self, source: Source) -> bool:
        """Whether this is a kind of source it can open; not whether opening will succeed."""

    @abstractmethod
    def open(
        self, source: Source, *, threads: int = 1, optimize: bool = True
    ) -> AbstractContextManager[Session]:
        """A session that holds while the context does; what it set then comes back.

        Args:
            source: A file, program or module.
            threads: How many CPU threads it may use.
            optimize: False turns the runtime's own graph optimisations off, where it has any.

        Raises:
            ExportError: The source cannot be opened.
        """


def register(runtime: Runtime) -> Runtime:
    """Make a runtime known; one of the same name is replaced."""
    return _REGISTRY.add(runtime)


def unregister(name: str) -> None:
    """Forget a runtime."""
    _REGISTRY.remove(name)


def runtimes() -> Mapping[str, Runtime]:
    """All runtimes by name, in the order in which they are asked for a source."""
    return dict(_REGISTRY)


def runtime_called(name: str) -> Runtime:
    """The runtime of this name.

    Raises:
        ExportError: There is none; the message has the nearest.
    """
    return _REGISTRY[name]


def runtime_for(source: Source, name: str | None = None) -> Runtime:
    """The runtime of this name, or the first that takes the source.

    Raises:
        ExportError: There is none of that name, or it does not take the source.
    """
    takers = [each for each in _REGISTRY.values() if each.takes(source)]
    if name is None:
        return takers[0]
    found = runtime_called(name)
    if found not in takers:
        what = "files" if isinstance(source, str | os.PathLike) else f"a {type(source).__name__}"
        others = ", ".join(each.name for each in takers)
        raise ExportError(f"{name} does not run {what}; runtimes that do: {others}")
    return found


_REGISTRY: Registry[Runtime] = Registry("runtime", "runtimes", ExportError)


def made_up(inputs: Sequence[Input], seed: int) -> tuple[Tensor, ...]:
    """Inputs for a file alone: normal floats and ones, at size 1 where a dimension may vary.

    Args:
        inputs: What a session takes.
        seed: For the floats. Integers and flags are one: no mask that hides all, a valid index.

    Raises:
        ExportError: An input has a type that torch has not.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for one in inputs:
        if one.dtype is None:
            raise ExportError(f"cannot make up input {one.name!r}; pass inputs=[...]")
        shape = [1 if size is None else size for size in one.shape]
        if one.dtype.is_floating_point:
            tensors.append(torch.randn(shape, generator=generator).to(one.dtype))
        else:
            tensors.append(torch.ones(shape, dtype=one.dtype))
    return tuple(tensors)
