"""Plans of random matrices and selections, for tests of the rewriter and of the proofs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.expressions import leaves
from fxcompress.edit.plan import Plan, Project
from fxcompress.program import Program

Way = Literal["matrices", "decoded", "mixture"]


@dataclass(frozen=True)
class RandomMixing:
    """Project every group that may change by random matrices, in each cell others where it can.

    Attributes:
        seed: Of the draw.
        share: Units that are left.
        way: ``matrices`` E and D; ``decoded``: a selection with a matrix D; ``mixture`` of both
            and of plain selections.
    """

    seed: int = 0
    share: float = 0.6
    way: Way = "matrices"

    def plan(self, program: Program) -> Plan:
        draw = torch.Generator().manual_seed(self.seed)
        groups = [group for group in program.groups if not group.frozen]
        return Plan(tuple(self._project(program, group, draw) for group in groups))

    def _project(self, program: Program, group: ChannelGroup, draw: torch.Generator) -> Project:
        k = max(1, round(group.units * self.share))
        way: str = self.way
        if way == "mixture":
            way = ("matrices", "decoded", "selection")[int(torch.randint(3, (), generator=draw))]
        apart = group.cells > 1 and bool(torch.randint(2, (), generator=draw))
        cells = (group.cells,) if apart else ()
        encode = normal((*cells, k, group.units), draw)
        if _is_variance(program, group):
            encode = encode.abs()
        if way == "matrices":
            tied = _is_tied(program, group)
            decode = encode.mT if tied else normal((*cells, group.units, k), draw)
            return Project(group, encode, decode)
        index = encode.argsort(-1)[..., :1, :].squeeze(-2)[..., :k]
        if way == "selection" or _is_tied(program, group):
            return Project(group, index.sort(-1).values)
        return Project(group, index, normal((*cells, group.units, k), draw))


def normal(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def _is_variance(program: Program, group: ChannelGroup) -> bool:
    """A running variance must stay positive."""
    return any(
        name.endswith("running_var") and group.factor in leaves(expr)
        for name, axes in program.analysis.coupling.parameters.items()
        for expr in axes
    )


def _is_tied(program: Program, group: ChannelGroup) -> bool:
    """One axis writes and reads the units: only D = Eᵀ is right."""
    roles: dict[tuple[str, int], set[str]] = {}
    for parameter, dim, role in program.analysis.coupling.roles[group.factor]:
        roles.setdefault((parameter, dim), set()).add(role)
    return any("contract" in own and len(own) > 1 for own in roles.values())
