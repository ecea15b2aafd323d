"""What rules say about the axes they meet, as plain data; resolved once the whole graph is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fxcompress.axes.expressions import Axes, Expr
from fxcompress.graph.schema import Path
from fxcompress.graph.window import Window

LetterAxes = tuple[tuple[str, ...], ...]
"""The letters of each axis of a tensor, several where it is their product."""
Role = Literal["produce", "contract", "affine", "statistic", "table"]


@dataclass(frozen=True)
class Constraint:
    """`words` holds for every factor of `expr`, because of `node`."""

    expr: Expr
    node: str
    words: str


@dataclass(frozen=True)
class RoleConstraint:
    """The factors of `expr` have `role` in each of `parameters`, on axis `dim` where known."""

    expr: Expr
    parameters: frozenset[str]
    role: Role
    dim: int | None


@dataclass(frozen=True)
class Binding:
    """The integer at `path` of the arguments of `node` is `sign` times the size of `expr`."""

    node: str
    path: Path
    expr: Expr
    sign: int = 1


@dataclass(frozen=True)
class Work:
    """`node` takes `coefficient` floating-point operations for every index of `exprs`."""

    node: str
    coefficient: int
    exprs: Axes


@dataclass(frozen=True)
class Contraction:
    """`node` multiplies values by a tensor made of parameters, and sums over what they share.

    Letters name axes as in the text of a rule: the same letter is the same index. All nodes are
    given by name.

    Attributes:
        node: What multiplies.
        weight: The node that holds the tensor.
        axes: The letters of its axes, with their sizes.
        values: What it is multiplied with; none where the operator makes that itself.
        value_axes: The letters of each value's axes, also where the operator makes the value.
        output_axes: The letters of the product's axes.
        routed: Letters of the weight of which an operand says which rows meet which index.
        addend: The argument that is added to the product, as the operator's schema calls it; None
            where the operator has none.
        added: The node given for it, if one is.
        scales: What the product and what is added are multiplied by.
        window: Where a convolution reads, which turns its value's positions into its output's.
        inner: Whether the product stays inside the operator, as in a recurrent layer.
    """

    node: str
    weight: str
    axes: tuple[tuple[tuple[str, int], ...], ...]
    values: tuple[str, ...]
    value_axes: tuple[LetterAxes, ...]
    output_axes: LetterAxes
    routed: frozenset[str] = frozenset()
    addend: str | None = None
    added: str | None = None
    scales: tuple[float, float] = (1, 1)
    window: Window | None = None
    inner: bool = False
