"""Permanent zeros: which entries of a parameter are zero for good, and in what pattern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Pattern:
    """At most `n` of every `m` consecutive entries along `axis` are not zero."""

    n: int
    m: int
    axis: int

    def holds(self, mask: Tensor) -> bool:
        """Whether a mask, True where entries may be non-zero, adheres to it."""
        if mask.shape[self.axis] % self.m:
            return False
        blocks = mask.movedim(self.axis, -1).unflatten(-1, (-1, self.m))
        return bool((blocks.sum(-1) <= self.n).all())

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True, eq=False)
class Zeros:
    """What is zero for good in a parameter.

    Attributes:
        mask: True where an entry may be non-zero, of the parameter's shape.
        pattern: What the mask adheres to, if to anything.
    """

    mask: Tensor
    pattern: Pattern | None = None

    @property
    def share(self) -> float:
        """The share of entries that are zero for good."""
        return 1 - float(self.mask.double().mean())


Masks = Mapping[str, Zeros]


@runtime_checkable
class Masking(Protocol):
    """A module of `Reparametrize` that makes entries zero for good tells which."""

    def zeros(self) -> tuple[Tensor, Pattern | None]:
        """A mask of the parameter's shape, True where an entry may be non-zero, and what the mask
        adheres to, if to anything.
        """
        ...
