"""Wanda for units: weights times the size of what they are multiplied by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Count
from fxcompress.budget import Sizing
from fxcompress.edit.plan import Plan
from fxcompress.passes.structured.method import StructuredPass
from fxcompress.passes.structured.readers import ByInputs, readers
from fxcompress.passes.structured.scores import Aggregate, Normaliser
from fxcompress.program import Program
from fxcompress.stats import Moments


@dataclass(frozen=True, kw_only=True, repr=False)
class WeightTimesInput(ByInputs):
    """Score a unit by mean |W_ij| √E[x_j²] over the outputs i of the layers that read it.

    This is Wanda (Sun et al., ICLR 2024, eq. 1) with the entries of a column averaged, as the
    Wanda-sp of FLAP (An et al., AAAI 2024) does. The columns of a unit (dims of a head, positions
    of a flattened map) are summed. It needs inputs and no labels.
    """

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> WeightedInputs:
        return WeightedInputs(self, self.seen(program, groups))

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.prepare(program, (group,)).score(program, group)


@dataclass(frozen=True, eq=False)
class WeightedInputs:
    """`WeightTimesInput` with what it has seen."""

    options: WeightTimesInput
    moments: dict[ChannelGroup, Moments]

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        each = []
        for one in readers(program, group):
            size = one.features(self.moments[group]).square.sqrt()
            each.append((one.columns(program).abs().mean(3) * size).sum(2))
        return self.options.over_readers(each)


@dataclass(frozen=True, kw_only=True, repr=False)
class WandaPruning(Sizing):
    """Keep the units that weigh most in the layers that read them, by weight times input.

    It needs inputs to calibrate on, and no labels: ``compile(model, args, task=batches)``.

    Attributes:
        aggregate: How several layers that read a group are combined; see `WeightTimesInput`.
        normaliser: What makes groups comparable, for global budgets.
        samples: How many samples at most; None for all.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    aggregate: Aggregate = "mean"
    normaliser: Normaliser = "mean"
    samples: Count | None = None

    @property
    def criterion(self) -> WeightTimesInput:
        """What scores the units."""
        return self.made(WeightTimesInput)

    def plan(self, program: Program) -> Plan:
        return StructuredPass(criterion=self.criterion, **self.sizing).plan(program)
