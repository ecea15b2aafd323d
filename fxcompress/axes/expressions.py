"""Axes as expressions over factors.

An axis of a tensor is an expression over *factors*, independent index ranges that can shrink::

    expr := factor | (expr expr …)      a product, row-major, as in einops: "(heads head_dim)"
          | [expr | expr | …]           a concatenation

`fxcompress.axes.space.Space` holds the three operations that relate axes: `split_right`, `split_at`
and `unify`. Each may *refine* a factor, that is, replace it everywhere at once by an expression of
new factors; a refined factor keeps a link to that expression (union-find with substitution). Two
expressions that cannot be aligned, such as (6 4) with (8 3), are *entangled*: `Space.entangled`
notes both, they are frozen in the end, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod


class Factor:
    """An index range of `size` units; `link` is the expression it was refined to, if any."""

    __slots__ = ("label", "link", "size", "uid")

    def __init__(self, uid: int, size: int, label: str) -> None:
        self.uid = uid
        self.size = size
        self.label = label
        self.link: Expr | None = None

    def __repr__(self) -> str:
        return f"{self.label}:{self.size}"


@dataclass(frozen=True)
class Product:
    """A row-major product of parts; the empty product is an axis of size 1."""

    parts: tuple[Expr, ...]

    @cached_property
    def size(self) -> int:
        """Number of indices."""
        return prod(part.size for part in self.parts)

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The factors, left to right, repeats included."""
        return tuple(factor for part in self.parts for factor in leaves(part))


@dataclass(frozen=True)
class Concat:
    """A concatenation of parts."""

    parts: tuple[Expr, ...]

    @cached_property
    def size(self) -> int:
        """Number of indices."""
        return sum(part.size for part in self.parts)

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The factors, left to right, repeats included."""
        return tuple(factor for part in self.parts for factor in leaves(part))


Expr = Factor | Product | Concat
Axes = tuple[Expr, ...]
UNIT = Product(())


@dataclass(frozen=True)
class Edge:
    """Two factors that an operation related: the `same` indices, or one `part` of the other."""

    first: Factor
    second: Factor
    cause: str
    kind: str


def product(parts: Iterable[Expr]) -> Expr:
    """The product of `parts` in normal form: flat, without parts of size 1."""
    flat: list[Expr] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Product) else (part,))
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def concat(parts: Iterable[Expr]) -> Expr:
    """The concatenation of `parts` in normal form: flat, without empty parts."""
    flat: list[Expr] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Concat) else (part,))
    flat = [part for part in flat if part.size > 0]
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def leaves(expr: Expr) -> tuple[Factor, ...]:
    """The factors of a resolved expression, left to right, repeats included."""
    return (expr,) if isinstance(expr, Factor) else expr.factors
