"""Group norms of DepGraph: all coupled parameters of a unit weigh together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.passes.structured.method import Structured
from fxcompress.passes.structured.scores import (
    ROLES,
    Normaliser,
    comparable,
    members_of,
    weights_of,
)
from fxcompress.program import Program


@dataclass(frozen=True, kw_only=True, repr=False)
class GroupNormPruning(Structured, alias="CoupledNorm"):
    """Keep the units whose coupled parameters have the largest norm together.

    A unit scores Σ w² over everything that holds it: producers, consumers, norms and tables
    (DepGraph: Fang et al., CVPR 2023, eq. 3).

    Attributes:
        normaliser: What makes groups comparable, for global budgets; see `MagnitudePruning`.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    normaliser: Normaliser = "max"

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        members = members_of(group, ROLES) or group.sites
        squares = (weights_of(program, group, site).square().sum(-1) for site in members)
        return comparable(squares, "sum", self.normaliser)


CoupledNorm = GroupNormPruning
"""The name it has as a criterion."""


def shrinkage(score: Tensor, alpha: float = 4.0) -> Tensor:
    """How hard sparse learning pulls at the units of a group: 1 at the best, 2^alpha at the worst.

    For I = √score it is 2^(alpha (I_max - I_u) / (I_max - I_min)). The gradient of every coupled
    parameter w of unit u gets w added, times this and a small constant (DepGraph, eq. 4).

    Args:
        score: Of the units of one group, not negative: sums of squares, as `CoupledNorm` gives.
        alpha: The largest exponent.

    Returns:
        Of the shape of `score`; ones where all units score alike.
    """
    root = score.sqrt()
    spread = root.max() - root.min()
    exponent = (root.max() - root) / spread if spread > 0 else root.new_zeros(root.shape)
    return (alpha * exponent).exp2()
