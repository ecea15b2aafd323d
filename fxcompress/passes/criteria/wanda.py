"""Wanda for units: weights times the size of what they are multiplied by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.passes.structured.by_inputs import ByInputs
from fxcompress.passes.structured.method import Criterion
from fxcompress.passes.structured.readers import readers
from fxcompress.program import Program
from fxcompress.stats import Moments


@dataclass(frozen=True, kw_only=True, repr=False)
class WandaPruning(ByInputs, alias="WeightTimesInput"):
    """Keep the units that weigh most in the layers that read them, by weight times input.

    A unit scores mean |W_ij| √E[x_j²] over the outputs i of the layers that read it. This is Wanda
    (Sun et al., ICLR 2024, eq. 1) with the entries of a column averaged, as the Wanda-sp of FLAP
    (An et al., AAAI 2024) does. The columns of a unit (dims of a head, positions of a flattened
    map) are summed.

    It needs inputs to calibrate on, and no labels: ``compile(model, args, task=batches)``. The
    options are those of `ByInputs`.
    """

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> WeightedInputs:
        return WeightedInputs(self, self.seen(program, groups))

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.prepare(program, (group,)).score(program, group)


@dataclass(frozen=True, eq=False)
class WeightedInputs(Criterion):
    """`WandaPruning` with what it has seen."""

    options: WandaPruning
    moments: dict[ChannelGroup, Moments]

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        each = []
        for one in readers(program, group):
            size = one.features(self.moments[group]).square.sqrt()
            each.append((one.columns(program).abs().mean(3) * size).sum(2))
        return self.options.over_readers(each)


WeightTimesInput = WandaPruning
"""The name it has as a criterion."""
