"""What a random net is made of: a block runs some layers, or one function, on one or two tensors.

A family looks at the shapes of its operands (without the batch) and gives a block that takes them,
or None. Families are tried by weight, so common layers are common.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
Make = Callable[[random.Random, tuple[Shape, ...]], "Block | None"]
WIDTHS = (4, 6, 8, 12)


class Block(nn.Module):
    """A function over tensors, with the layers, parameters and buffers that it reads.

    Attributes:
        label: What it is, for people.
        run: Called with the block and its operands.
        writes: Whether it writes into its first operand.
        family: Of which it is, by name; set when it is drawn.
    """

    def __init__(
        self,
        label: str,
        run: Callable[..., Tensor],
        *,
        writes: bool = False,
        buffers: dict[str, Tensor] | None = None,
        **parts: Any,
    ) -> None:
        super().__init__()
        self.label, self.run, self.writes, self.family = label, run, writes, ""
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                part = nn.Parameter(part)
            setattr(self, name, part)
        for name, value in (buffers or {}).items():
            self.register_buffer(name, value)

    def forward(self, *operands: Tensor) -> Tensor:
        return self.run(self, *operands)

    def extra_repr(self) -> str:
        return self.label


@dataclass(frozen=True)
class Family:
    """A kind of block.

    Attributes:
        name: Of the function that makes it.
        make: Gives a block for operands of given shapes, or None.
        arity: Operands: one, or two of the same shape.
        ranks: Ranks of the first operand it is for, without the batch axis.
        weight: How often it is tried.
    """

    name: str
    make: Make
    arity: int
    ranks: tuple[int, ...]
    weight: float


FAMILIES: dict[str, Family] = {}


def family(
    *ranks: int, arity: int = 1, weight: float = 1.0
) -> Callable[[Callable[..., Block | None]], Callable[..., Block | None]]:
    """Register a maker: ``make(rng, *shapes)``, for operands of these ranks (none: any rank)."""

    def register(make: Callable[..., Block | None]) -> Callable[..., Block | None]:
        name = make.__name__
        FAMILIES[name] = Family(
            name,
            lambda rng, shapes: make(rng, *shapes),
            arity,
            ranks or (1, 2, 3, 4),
            weight,
        )
        return make

    return register


def layer(module: nn.Module, label: str | None = None) -> Block:
    """A block of one layer."""
    return Block(
        label or str(module).splitlines()[0], lambda block, x: block.inner(x), inner=module
    )


def call(label: str, function: Callable[..., Tensor], *, writes: bool = False) -> Block:
    """A block without parameters."""
    return Block(label, lambda _, *xs: function(*xs), writes=writes)


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def normal(rng: random.Random, *shape: int, scale: float = 1.0) -> Tensor:
    """Random numbers that hang on `rng` alone."""
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    return torch.randn(shape, generator=generator) * scale
