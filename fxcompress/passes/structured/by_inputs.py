"""What methods share that look at the inputs of the layers that read a group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Count
from fxcompress.passes.structured.method import Structured
from fxcompress.passes.structured.readers import unread
from fxcompress.passes.structured.scores import Aggregate, Normaliser, comparable
from fxcompress.program import Program
from fxcompress.stats import Moments, moments


@dataclass(frozen=True, kw_only=True, repr=False)
class ByInputs(Structured):
    """Base of methods that look at the inputs of the layers that read a group.

    Attributes:
        aggregate: How several layers that read a group are combined.
        normaliser: What makes groups comparable, for global budgets; see `MagnitudePruning`.
        samples: How many samples at most; None for all.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    aggregate: Aggregate = "mean"
    normaliser: Normaliser = "mean"
    samples: Count | None = None

    def declines(self, program: Program, group: ChannelGroup) -> str | None:
        return unread(program, group)

    def seen(self, program: Program, groups: Sequence[ChannelGroup]) -> dict[ChannelGroup, Moments]:
        """Moments of all groups, from one pass over the data.

        Raises:
            PlanError: There are no data, or a group has units that no layer reads.
        """
        who = type(self).__name__
        return moments(program, groups, gram="none", who=who, samples=self.samples)

    def over_readers(self, each: Iterable[Tensor]) -> Tensor:
        """The score of a group from those of the layers that read it."""
        return comparable(each, self.aggregate, self.normaliser)
