"""Layer-adaptive magnitude (LAMP): what a unit weighs beside those that would outlive it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.passes.structured.method import Structured
from fxcompress.passes.structured.scores import (
    ROLES,
    MemberRole,
    comparable,
    members_of,
    weights_of,
)
from fxcompress.program import Program


@dataclass(frozen=True, kw_only=True, repr=False)
class LAMPPruning(Structured, alias="LayerAdaptiveMagnitude"):
    """Keep the units that weigh most beside those of their group that weigh more still.

    A unit scores s_u / Σ s_v over the units v of its group with s_v ≥ s_u, itself included. s_u is
    the sum of squares of all weights that hold the unit. The best unit of every group scores 1, so
    a global budget never empties one (Lee et al., ICLR 2021, eq. 4, for whole units; the group's
    order is that of its magnitudes).

    Attributes:
        roles: Which axes hold weights that count: those that ``produce`` the units, ``contract``
            them, scale them (``affine``, without biases), or are a ``table`` of them.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    roles: tuple[MemberRole, ...] = ROLES

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        members = members_of(group, self.roles) or group.sites
        squares = (weights_of(program, group, site).square().sum(-1) for site in members)
        return comparable(squares, "sum", "lamp")


LayerAdaptiveMagnitude = LAMPPruning
"""The name it has as a criterion."""
