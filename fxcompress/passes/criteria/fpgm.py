"""Pruning by the geometric median: the units that the others can best stand in for go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.passes.structured.method import DeclinedError, Structured
from fxcompress.passes.structured.scores import (
    Aggregate,
    MemberRole,
    Normaliser,
    comparable,
    members_of,
    weights_of,
)
from fxcompress.program import Program


@dataclass(frozen=True, kw_only=True, repr=False)
class FPGMPruning(Structured, alias="MedianDistance"):
    """Keep the units of each group that are farthest from all others.

    A unit scores its distances to the other units of its cell, Σᵥ ‖W_u - W_v‖₂. What lies nearest
    the geometric median is what the others replace best (FPGM: He et al., CVPR 2019, eq. 6).

    Attributes:
        power: 1 for the weights themselves. 2 takes distances between elementwise squares, as
            torch-pruning does; signs are lost, so a unit and its negative count as duplicates.
        aggregate: How the members of a group are combined: ``mean``, ``sum``, ``max``, ``first``.
        normaliser: What makes groups comparable, for global budgets; see `MagnitudePruning`.
        roles: Which axes are members; see `MagnitudePruning`.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    power: Literal[1, 2] = 1
    aggregate: Aggregate = "mean"
    normaliser: Normaliser = "mean"
    roles: tuple[MemberRole, ...] = ("produce", "table")

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        members = members_of(group, self.roles)
        if not members:
            raise DeclinedError(
                group,
                f"it has no axis in the roles {', '.join(self.roles)} to take distances between",
            )
        each = (self._distances(weights_of(program, group, site)) for site in members)
        return comparable(each, self.aggregate, self.normaliser)

    def _distances(self, rows: Tensor) -> Tensor:
        points = rows if self.power == 1 else rows.abs().pow(self.power)
        return torch.cdist(points, points).sum(-1)


MedianDistance = FPGMPruning
"""The name it has as a criterion."""
