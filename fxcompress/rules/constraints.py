"""What rules say about the axes they meet, as plain data; resolved once the whole graph is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fxcompress.axes.expressions import Axes, Expr
from fxcompress.graph.schema import Path

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
