"""FLAP: units whose signal hardly fluctuates go, and biases take up what it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.edit.plan import Edit, Offset, Project
from fxcompress.passes.structured.by_inputs import ByInputs
from fxcompress.passes.structured.method import Criterion, Reconstruction
from fxcompress.passes.structured.readers import Reader, readers, takes_no_constant
from fxcompress.passes.structured.scores import Normaliser
from fxcompress.program import Program
from fxcompress.stats import Moments


@dataclass(frozen=True, kw_only=True, repr=False)
class FLAPPruning(ByInputs, Reconstruction, alias="Fluctuation"):
    """Keep the units whose signal fluctuates most, weighted, and shift biases for the others.

    A unit scores var(x_j) ‖W_:j‖² in the layers that read it: one that always says the same can be
    replaced by a constant (An et al., AAAI 2024, "Weighted Input Feature Variance" and eq. 8). The
    columns of a unit (dims of a head, positions of a flattened map) are summed, and scores of a
    group are standardised, as in the paper. As a reconstruction W_:P E[x_P] is added to what a
    reader gives; in a convolution that pads with zeros the constant is right inside and too large
    at the border. A layer without a bias gets one, unless a BatchNorm follows that can take up the
    shift.

    It needs inputs to calibrate on, and no labels: ``compile(model, args, task=batches)``. The
    options are those of `ByInputs`.
    """

    normaliser: Normaliser = "zscore"

    @property
    def own_reconstruction(self) -> Reconstruction:
        return self

    def declines(self, program: Program, group: ChannelGroup) -> str | None:
        return super().declines(program, group) or takes_no_constant(
            program, readers(program, group)
        )

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> Fluctuations:
        return Fluctuations(self, self.seen(program, groups))

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.prepare(program, (group,)).score(program, group)

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return self.prepare(program, (group,)).edits(program, group, kept)


@dataclass(frozen=True, eq=False)
class Fluctuations(Criterion, Reconstruction):
    """`FLAPPruning` with what it has seen."""

    options: FLAPPruning
    moments: dict[ChannelGroup, Moments]

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        each = []
        for one in readers(program, group):
            spread = one.features(self.moments[group]).variance
            each.append((one.columns(program).square().sum(3) * spread).sum(2))
        return self.options.over_readers(each)

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        gone = torch.ones(group.cells, group.units, dtype=torch.bool)
        gone.scatter_(1, kept.expand(group.cells, -1), False)
        found: list[Edit] = [Project(group, kept)]
        found += [self._offset(program, group, one, gone) for one in readers(program, group)]
        return tuple(found)

    def _offset(self, program: Program, group: ChannelGroup, one: Reader, gone: Tensor) -> Offset:
        mean = one.features(self.moments[group]).mean
        lost = mean * gone[..., None].to(mean)
        return Offset(one.weight, one.sums(one.columns(program) * lost.unsqueeze(3)))


Fluctuation = FLAPPruning
"""The name it has as a criterion and a reconstruction."""
