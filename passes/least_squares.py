"""Least squares on activations: the units whose signals the others can make up for go, and the
layers that read them are refitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor

from fxcompress.budget import Recipe, Sizing
from fxcompress.calibrate import Grams, Moments, moments, require_data
from fxcompress.errors import PlanError
from fxcompress.groups import ChannelGroup
from fxcompress.passes.least_squares_solve import Greedy, System
from fxcompress.passes.readers import Reader, readers
from fxcompress.passes.structured import StructuredPass
from fxcompress.plan import Edit, Offset, Plan, Project, Replace
from fxcompress.program import Program

Order = Literal["refitted", "original"]


@dataclass(frozen=True, kw_only=True, repr=False)
class LeastSquares(Recipe):
    """Choose units and refit their readers by the second moments of the readers' inputs.

    With K = E[h hᵀ] of the signals h that a layer V reads, after every activation, norm, pooling
    and depthwise layer, the units P go and V_K becomes V_K + V_P K_PK (K_KK + λI)⁻¹: of all weights
    on the units that stay, the nearest to what the layer gave on the data. No labels are needed.
    As a criterion it removes one unit after another, each time the one that costs the sum of its
    readers' outputs least, as a share of what they give; it may be combined with any other
    reconstruction, and the refitting with any other criterion, in a `StructuredPass`.

    In a convolution the taps of its kernel share the coefficients. A unit with several places on a
    linear layer's axis (a flattened map, a head) goes as a block, and each place is made up for by
    all places that stay. A group with several readers (a residual stream) has units that are
    cheapest for all of them together, and each of them is refitted to its own inputs.

    Attributes:
        lambda_rel: λ as a share of the mean of K's diagonal.
        centred: Use covariances, and let the readers' biases take up the means.
        order: Score with weights ``refitted`` after each removal, or as they were ``original``.
        inputs: Widest layer whose inputs get a Gram matrix each; in a wider one the places of a
            unit share it.
        samples: How many samples at most; None for all.
    """

    lambda_rel: float = 1e-3
    centred: bool = False
    order: Order = "refitted"
    inputs: int = 8192
    samples: int | None = None

    def __post_init__(self) -> None:
        if not self.lambda_rel >= 0:
            raise PlanError(f"lambda_rel is a share, 0 or more; got {self.lambda_rel}")
        if self.order not in ("refitted", "original"):
            raise PlanError(f"order={self.order!r}; it is 'refitted' or 'original'")

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> Fitted:
        """Look at the data once, for all groups.

        Raises:
            PlanError: There are no data, or a group has units that no layer reads.
        """
        require_data(program, type(self).__name__)
        own = {group: readers(program, group) for group in groups}
        kinds = {group: _kind(found, self.inputs) for group, found in own.items()}
        found = moments(
            program,
            groups,
            gram=kinds.__getitem__,
            who=type(self).__name__,
            samples=self.samples,
        )
        return Fitted(self, own, kinds, found)

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.prepare(program, (group,)).score(program, group)

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return self.prepare(program, (group,)).edits(program, group, kept)


@dataclass(frozen=True, eq=False)
class Fitted:
    """`LeastSquares` with the moments it needs."""

    options: LeastSquares
    readers: dict[ChannelGroup, tuple[Reader, ...]]
    kinds: dict[ChannelGroup, Grams]
    moments: dict[ChannelGroup, Moments]
    notes: list[str] = field(default_factory=list)

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        systems = [self._system(program, group, one)[0] for one in self.readers[group]]
        updates = self.options.order == "refitted"
        return Greedy(systems, group.cells, group.units, updates).importance()

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        stay = torch.zeros(group.cells, group.units, dtype=torch.bool)
        stay.scatter_(1, kept.expand(group.cells, -1), True)
        found: list[Edit] = [Project(group, kept)]
        for one in self.readers[group]:
            if one.tied:
                self.notes.append(
                    f"{one.weight} writes group {group.name} too and was not refitted to it"
                )
                continue
            found += self._refit(program, group, one, stay)
        return tuple(found)

    def _refit(
        self, program: Program, group: ChannelGroup, one: Reader, stay: Tensor
    ) -> list[Edit]:
        system, mean = self._system(program, group, one)
        rows = self._lined(group, stay[..., None, None].expand((*one.index.shape[:3], 1)))
        mask = rows[..., 0].to(system.gram.device)
        if self.kinds[group] == "units":
            mask = stay.to(mask)
        new = system.refitted(mask)
        edits: list[Edit] = []
        if self.options.centred:
            lost = (system.columns - new) * mean.unsqueeze(2)
            edits.append(Offset(one.weight, one.sums(lost.reshape(one.index.shape))))
        columns = torch.where(mask.unsqueeze(2), new, system.columns)
        value = one.replaced(program, columns.reshape(one.index.shape))
        return [Replace(one.weight, value), *edits]

    def _system(self, program: Program, group: ChannelGroup, one: Reader) -> tuple[System, Tensor]:
        """The reader as a linear map, and the means of its inputs."""
        gram, mean = one.statistics(self.moments[group])
        if self.options.centred:
            gram = gram - mean.unsqueeze(2) * mean.unsqueeze(1)
        columns = self._lined(group, one.columns(program))
        return System(gram, columns, self.options.lambda_rel, one.weight), mean

    def _lined(self, group: ChannelGroup, entries: Tensor) -> Tensor:
        """Entries (cells, units, places, …) as rows of the group's Gram matrix."""
        kind = self.kinds[group]
        if kind == "cells":
            return entries.flatten(0, 2).unsqueeze(0)
        return entries.flatten(1, 2) if kind == "places" else entries.flatten(2)


def _kind(own: Sequence[Reader], widest: int) -> Grams:
    """What the Gram matrices of a group are over."""
    if not all(one.lined for one in own):
        return "units"
    width = max((one.index[..., 0].numel() for one in own), default=0)
    if all(one.joint for one in own) and width <= widest:
        return "cells"
    alone = max((one.index[0, ..., 0].numel() for one in own), default=0)
    return "places" if alone <= widest else "units"


@dataclass(frozen=True, kw_only=True, repr=False)
class LeastSquaresPruning(Sizing):
    """Remove the units that the others can best make up for, and refit the layers that read them.

    It needs inputs to calibrate on, and no labels: ``compile(model, args, task=batches)``.

    Attributes:
        lambda_rel: The ridge, as a share of the mean square of the inputs; see `LeastSquares`.
        centred: Use covariances, and let the readers' biases take up the means.
        order: Choose with weights ``refitted`` after each removal, or as they were ``original``.
        inputs: Widest layer whose inputs get a Gram matrix each.
        samples: How many samples at most; None for all.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    lambda_rel: float = 1e-3
    centred: bool = False
    order: Order = "refitted"
    inputs: int = 8192
    samples: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.method  # refuses what cannot be

    @property
    def method(self) -> LeastSquares:
        """What chooses the units and refits the layers."""
        return LeastSquares(
            **{each.name: getattr(self, each.name) for each in fields(LeastSquares)}
        )

    def plan(self, program: Program) -> Plan:
        method = self.method
        return StructuredPass(criterion=method, reconstruction=method, **self.sizing).plan(program)
