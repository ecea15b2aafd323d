"""Network slimming: the channels that BatchNorm scales least go."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup, Site
from fxcompress.graph.norms import batch_norms
from fxcompress.passes.structured.method import DeclinedError, Structured
from fxcompress.passes.structured.scores import (
    Aggregate,
    Normaliser,
    comparable,
    weights_of,
)
from fxcompress.program import Program


@dataclass(frozen=True, kw_only=True, repr=False)
class SlimmingPruning(Structured, alias="BatchNormScale"):
    """Keep the channels that BatchNorm scales most.

    A unit scores the absolute scale of its BatchNorms (Liu et al., ICCV 2017). The paper trains
    with an L1 penalty on the scales first and compares those of all layers as they are, the default
    here; without that training a normaliser may do better.

    Attributes:
        aggregate: How several BatchNorms of a group are combined: ``mean``, ``sum``, ``max``;
            ``first`` takes the first alone.
        normaliser: What makes groups comparable, for global budgets; see `MagnitudePruning`.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    aggregate: Aggregate = "mean"
    normaliser: Normaliser = "none"

    def declines(self, program: Program, group: ChannelGroup) -> str | None:
        return None if _norms(program, group) else "no BatchNorm scales it"

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        norms = _norms(program, group)
        if not norms:
            raise DeclinedError(group, "it has no BatchNorm with a scale to rank its units by")
        each = (weights_of(program, group, site).abs().sum(-1) for site in norms)
        return comparable(each, self.aggregate, self.normaliser)


BatchNormScale = SlimmingPruning
"""The name it has as a criterion."""


def _norms(program: Program, group: ChannelGroup) -> list[Site]:
    scales = batch_norm_scales(program)
    return [site for site in group.sites if site.parameter in scales]


def batch_norm_scales(program: Program) -> frozenset[str]:
    """The names of the parameters by which BatchNorms scale."""
    return frozenset(norm.scale for norm in batch_norms(program.module) if norm.scale is not None)
