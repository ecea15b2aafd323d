"""Group norms of DepGraph: all coupled parameters of a unit weigh together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget import Recipe, Sizing
from fxcompress.edit.plan import Plan
from fxcompress.passes.structured.method import StructuredPass
from fxcompress.passes.structured.scores import (
    ROLES,
    Normaliser,
    combined,
    members_of,
    normalised,
    weights_of,
)
from fxcompress.program import Program


@dataclass(frozen=True, kw_only=True, repr=False)
class CoupledNorm(Recipe):
    """Score a unit by Σ w² over everything that holds it: producers, consumers, norms and tables
    (DepGraph: Fang et al., CVPR 2023, eq. 3).

    Attributes:
        normaliser: What makes the scores of groups comparable, for global budgets.
    """

    normaliser: Normaliser = "max"

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        members = members_of(group, ROLES) or group.sites
        squares = [weights_of(program, group, site).square().sum(-1) for site in members]
        return normalised(combined(squares, "sum"), self.normaliser)


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


@dataclass(frozen=True, kw_only=True, repr=False)
class GroupNormPruning(Sizing):
    """Keep the units whose coupled parameters have the largest norm together.

    Attributes:
        normaliser: What makes groups comparable, for global budgets; see `MagnitudePruning`.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    normaliser: Normaliser = "max"

    @property
    def criterion(self) -> CoupledNorm:
        """What scores the units."""
        return CoupledNorm(normaliser=self.normaliser)

    def plan(self, program: Program) -> Plan:
        return StructuredPass(criterion=self.criterion, **self.sizing).plan(program)
