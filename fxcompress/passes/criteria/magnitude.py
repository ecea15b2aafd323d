"""Magnitude pruning: the units with the smallest weights go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup, Site
from fxcompress.graph.parameters import read_tensor
from fxcompress.passes.structured.method import Structured
from fxcompress.passes.structured.scores import (
    Aggregate,
    MemberRole,
    Normaliser,
    comparable,
    entries_of,
    members_of,
)
from fxcompress.program import Program


@dataclass(frozen=True, kw_only=True, repr=False)
class MagnitudePruning(Structured, alias="Magnitude"):
    """Keep the units of each group whose weights are largest.

    Each axis that holds the units is a member, scored by Σ|w|ᵖ over the entries of a unit (no root,
    as in the published baselines); the members are then aggregated.

    Attributes:
        p: 1 or 2: sums of absolute values, or of squares.
        aggregate: How the members of a group are combined: ``mean``, ``sum``, ``max``; ``first``
            takes the first alone.
        normaliser: What makes groups comparable, for global budgets: ``mean``, ``max``, ``sum``,
            ``lamp``, ``zscore`` or ``none``.
        roles: Which axes are members: those that ``produce`` the units, ``contract`` them (the
            layers after), scale them (``affine``, without biases), or are a ``table`` of them. A
            group with no such axis is scored by all it has.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    p: Literal[1, 2] = 2
    aggregate: Aggregate = "mean"
    normaliser: Normaliser = "mean"
    roles: tuple[MemberRole, ...] = ("produce", "table")

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        members = members_of(group, self.roles) or group.sites
        each = (self._power(program, group, site) for site in members)
        return comparable(each, self.aggregate, self.normaliser)

    def _power(self, program: Program, group: ChannelGroup, site: Site) -> Tensor:
        tensor = read_tensor(program.module, site.parameter)
        places = self._places(tensor, site.dim)
        return entries_of(program, group, site, places).sum(-1)

    def _places(self, tensor: Tensor, dim: int) -> Tensor:
        """Σ|w|ᵖ over all axes but one, at each place of that."""
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()  # squares of small weights underflow
        others = [other for other in range(tensor.dim()) if other != dim]
        norm = torch.linalg.vector_norm(tensor, self.p, dim=others) if others else tensor.abs()
        return norm.to(torch.float64).pow(self.p)


Magnitude = MagnitudePruning
"""The name it has as a criterion."""
