"""Projections of units that are trained: parameters are read through E and D until finalised.

This is what Projected Compression asks for: every parameter keeps its dense values, and the smaller
graph reads E W and V D with matrices that small modules give and gradients reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.expressions import Axes, Factor, leaves
from fxcompress.edit.base import Edit, Stage
from fxcompress.edit.context import Context
from fxcompress.edit.project import Project
from fxcompress.edit.projected import Projected, Side
from fxcompress.edit.proof import Proof
from fxcompress.edit.reparametrize import read_through
from fxcompress.errors import PlanError
from fxcompress.graph.metadata import TensorMeta


@dataclass(frozen=True, eq=False)
class TrainableProject(Edit):
    """The n units of `group` become k, by matrices that may be trained on.

    Parameters stay as they are and are read through the matrices; buffers (running statistics) are
    projected once. `Program.finalize` makes smaller plain parameters of what is read.

    Attributes:
        group: The group, as the program's analysis names it.
        encode: Called without arguments it gives the matrix E of shape (k, n) or (cells, k, n) for
            what produces the units.
        decode: Called without arguments it gives the matrix D of shape (n, k) or (cells, n, k) for
            what consumes them.
    """

    stage: ClassVar[Stage] = Stage.WIDTHS

    group: ChannelGroup
    encode: nn.Module
    decode: nn.Module

    @property
    def now(self) -> Project:
        """The projection with the matrices that the modules give by now."""
        with torch.no_grad():
            return Project(self.group, self.encode().detach(), self.decode().detach())

    @property
    def target(self) -> str:
        return self.group.name

    @property
    def projects(self) -> tuple[Project, ...]:
        return (self.now,)

    def check(self, context: Context) -> None:
        now = self.now
        if now.encoder.selects:
            raise PlanError(
                f"group {self.group.name}: the encode module gives {now.encode.dtype}; "
                "it gives a matrix, or give a Project with indices"
            )
        now.check(context)

    def apply(self, context: Context) -> None:
        self.now.apply(context)
        context.trained[self.group.factor] = (self.encode, self.decode)

    def proof(self, context: Context) -> Proof:
        """As that of a projection with the matrices of now; and finalised it is the same."""
        return replace(self.now.proof(context), finalizes=True)


def read_projected(context: Context, name: str, axes: Axes) -> None:
    """Read a parameter through the matrices of its units, in place; its values stay.

    Args:
        context: The graph has the new widths already.
        name: The parameter.
        axes: Its axes before.

    Raises:
        PlanError: It also holds units that change for good in the same plan.
    """
    sides: list[dict[Factor, Side]] = []
    for dim, expr in enumerate(axes):
        changed = [leaf for leaf in dict.fromkeys(leaves(expr)) if leaf in context.encoders]
        if any(leaf not in context.trained for leaf in changed):
            raise PlanError(
                f"{name} is read through matrices that train, and other units of it change in the "
                "same plan; make two passes of it, the trained one last"
            )
        sides.append({leaf: _side(context, name, dim, leaf) for leaf in changed})
    dense = context.tensor(name)
    read_through(context.module, name, Projected(axes, sides))
    for source in context.module.graph.find_nodes(op="get_attr"):
        if source.target == name:
            source.meta["val"] = TensorMeta(tuple(dense.shape), dense.dtype)


def _side(context: Context, name: str, dim: int, factor: Factor) -> Side:
    """The matrix of one factor on one axis: decoded where contracted."""
    encode, decode = context.trained[factor]
    if (name, dim, "contract") in context.coupling.roles.get(factor, ()):
        return Side(decode, context.decoders[factor].over, consumes=True)
    return Side(encode, context.encoders[factor].over, consumes=False)
