"""Values that are read when somebody asks for them.

A tensor on the meta device has a shape and a type. A *lazy value* that is attached to it says where
its elements lie and which of them stayed; reading gives them, and nobody keeps them. Everything
that looks at the values of parameters asks `value_of` or `parameters.read_tensor`, which give those
of any other tensor as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Places = Sequence[Tensor | None]
"""For each axis, the indices that stay, in order; None where all do."""

READ_LAZILY = (
    "are read one tensor at a time; save the program with program.save(path) and take what "
    "fxcompress.load(path) gives"
)
"""What is said of lazy values where all values are needed at once."""

_ATTRIBUTE = "_lazy_value"


class LazyValue(Protocol):
    """The elements of a tensor, somewhere else."""

    def read(self) -> Tensor:
        """The elements, on the CPU. Who reads may not write to them."""

    def select(self, kept: Places) -> LazyValue:
        """The elements that stay; nothing is read."""


@dataclass(frozen=True, eq=False)
class Held:
    """A value that was computed and lies in memory."""

    value: Tensor

    def read(self) -> Tensor:
        return self.value

    def select(self, kept: Places) -> Held:
        return Held(_cut(self.value, kept))


def lazy_value(tensor: Tensor) -> LazyValue | None:
    """The lazy value of a tensor on the meta device, if it has one."""
    return vars(tensor).get(_ATTRIBUTE) if tensor.is_meta else None


def attach(tensor: Tensor, value: LazyValue | None) -> Tensor:
    """The very `tensor`, which lies on the meta device, with the values it is to have."""
    vars(tensor)[_ATTRIBUTE] = value
    return tensor


def value_of(tensor: Tensor) -> Tensor:
    """The values of a tensor, detached: read now, on the CPU, if they are lazy.

    On the meta device without a lazy value there are none, and the tensor is given as it is.
    """
    lazy = lazy_value(tensor)
    return tensor.detach() if lazy is None else lazy.read().to(tensor.dtype)


def selected(tensor: Tensor, kept: Places) -> Tensor:
    """The entries that stay on each axis, contiguous; of a lazy value they are not read."""
    small, lazy = _cut(tensor.detach(), kept).contiguous(), lazy_value(tensor)
    return small if lazy is None else attach(small, lazy.select(kept))


def device_of_values(argument: Any) -> Any:
    """For the meta device among the arguments of an operator, the one where lazy values are read;
    anything else as it is.
    """
    meta = isinstance(argument, torch.device) and argument.type == "meta"
    return torch.device("cpu") if meta else argument


def carrying(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of tensors, such as a conversion, that takes lazy values along."""

    def applied(tensor: Tensor) -> Tensor:
        lazy, new = lazy_value(tensor), fn(tensor)
        return attach(new, lazy) if lazy is not None and new.is_meta else new

    return applied


def share_lazy_values(module: nn.Module, twin: nn.Module) -> None:
    """Give the tensors of a deep copy, which lose attributes, the lazy values of the module's."""
    pairs = zip(_tensors(module), _tensors(twin), strict=True)
    for old, new in pairs:
        lazy = lazy_value(old)
        if lazy is not None:
            attach(new, lazy)


def is_lazy(module: nn.Module) -> bool:
    """Whether a parameter or buffer has a lazy value, so that the module cannot be called as it
    is.
    """
    return any(lazy_value(tensor) is not None for tensor in _tensors(module))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _cut(tensor: Tensor, kept: Places) -> Tensor:
    for dim, index in enumerate(kept):
        if index is not None:
            tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor
