"""What each of the flattened inputs of a program was when it was captured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

Scalar = bool | int | float | str | None


class Leaf(Protocol):
    """One of the flattened inputs."""

    @property
    def name(self) -> str:
        """``args[0]``, ``input_ids``, ``states['left']``."""

    def fits(self, value: object, sizes: dict[str, int]) -> bool:
        """Whether `value` is what was captured; sizes of free axes are entered in `sizes`.

        One name stands for one size: a second axis of the same name has to have the same.
        """

    def describe(self) -> str:
        """What was captured, for people."""

    def difference(self, value: object) -> str | None:
        """What `value` is instead, for people; None if it fits, sizes of free axes apart."""

    def cast(self, dtypes: dict[torch.dtype, torch.dtype]) -> Leaf:
        """The same input of a program that was moved to other dtypes."""


@dataclass(frozen=True)
class TensorInput:
    """A tensor; in its shape a name stands for a free axis."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def fits(self, value: object, sizes: dict[str, int]) -> bool:
        if not isinstance(value, Tensor) or value.dtype is not self.dtype:
            return False
        given = value.shape
        if len(given) != len(self.shape):
            return False
        for expected, size in zip(self.shape, given, strict=True):
            if isinstance(expected, str):
                expected = sizes.setdefault(expected, size)
            if size != expected:
                return False
        return True

    def describe(self) -> str:
        return f"{plain(self.dtype)} of shape [{', '.join(map(str, self.shape))}]"

    def difference(self, value: object) -> str | None:
        if isinstance(value, Tensor) and value.dtype is self.dtype and not self.wrong_axes(value):
            return None
        return spell(value)

    def wrong_axes(self, value: Tensor) -> list[int]:
        """The fixed axes in which a tensor of another size differs; all axes for another rank."""
        if value.ndim != len(self.shape):
            return list(range(value.ndim)) or [0]
        pairs = enumerate(zip(self.shape, value.shape, strict=True))
        return [axis for axis, (own, size) in pairs if isinstance(own, int) and own != size]

    def cast(self, dtypes: dict[torch.dtype, torch.dtype]) -> TensorInput:
        return replace(self, dtype=dtypes[self.dtype])


@dataclass(frozen=True)
class ValueInput:
    """A number, flag, string or None: the graph holds for this value only."""

    name: str
    value: Scalar

    def fits(self, value: object, sizes: dict[str, int]) -> bool:
        if value.__class__ is not self.value.__class__:
            return False
        return value == self.value or (_is_nan(value) and _is_nan(self.value))

    def describe(self) -> str:
        return repr(self.value)

    def difference(self, value: object) -> str | None:
        return None if self.fits(value, {}) else spell(value)

    def cast(self, dtypes: dict[torch.dtype, torch.dtype]) -> ValueInput:
        return self


@dataclass(frozen=True)
class SizeInput:
    """A whole number that an exported program left free."""

    name: str
    size: str

    def fits(self, value: object, sizes: dict[str, int]) -> bool:
        if type(value) is not int and not isinstance(value, torch.SymInt):
            return False
        return sizes.setdefault(self.size, value) == value  # type: ignore[arg-type]

    def describe(self) -> str:
        return f"the whole number {self.size}"

    def difference(self, value: object) -> str | None:
        return None if type(value) is int else spell(value)

    def cast(self, dtypes: dict[torch.dtype, torch.dtype]) -> SizeInput:
        return self


def plain(dtype: torch.dtype) -> str:
    """``float32``."""
    return str(dtype).removeprefix("torch.")


def spell(value: object) -> str:
    """An input in a few words."""
    if isinstance(value, Tensor):
        return f"{plain(value.dtype)} of shape {list(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value) if len(repr(value)) < 60 else f"{repr(value)[:56]} …"
    return f"a {type(value).__name__}"


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and value != value
