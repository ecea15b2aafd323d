"""Least squares on activations: the units whose signals the others can make up for go, and the
layers that read them are refitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Count, NotNegative
from fxcompress.edit.plan import Edit, Offset, Project, Replace
from fxcompress.passes.least_squares.changes import Changed, contributions
from fxcompress.passes.least_squares.inputs import Gathered, InOrder, Inputs
from fxcompress.passes.least_squares.solve import Greedy, System
from fxcompress.passes.structured.method import Criterion, Reconstruction, Structured
from fxcompress.passes.structured.readers import Reader, readers, takes_no_constant, unread
from fxcompress.program import Program
from fxcompress.stats import Grams, Paired, Read, aligned, moments, require_data

Order = Literal["refitted", "original"]


@dataclass(frozen=True, kw_only=True, repr=False)
class LeastSquaresPruning(Structured, Reconstruction, alias="LeastSquares"):
    """Remove the units that the others can best make up for, and refit the layers that read them.

    With K = E[h hᵀ] of the signals h that a layer V reads, after every activation, norm, pooling
    and depthwise layer, the units P go and V_K becomes V_K + V_P K_PK (K_KK + λI)⁻¹: of all weights
    on the units that stay, the nearest to what the layer gave on the data. It needs inputs and no
    labels: ``compile(model, args, task=batches)``. As a criterion it removes one unit after
    another, each time the one that costs the sum of its readers' outputs least, as a share of what
    they give; it may be combined with any other reconstruction, and the refitting with any other
    criterion, in a `StructuredPass`.

    In a convolution every tap of the kernel is an input of its own, which the other taps of the
    same unit and all taps of others stand in for; or taps share their coefficients, which costs
    less time and data, and is all that there is where the groups of a convolution hold a copy of
    each unit. A unit with several places on a linear layer's axis (a flattened map, a head) goes
    as a block, and each place is made up for by all places that stay. A group with several readers
    (a residual stream) has units that are cheapest for all of them together, and each of them is
    refitted to its own inputs. A layer that several groups hold inputs of is refitted to what all
    of them leave.

    Scores are what removals cost, as shares of what layers give, and add up: with a budget
    ``allocation="exact"`` finds the widths that cost least together, and did better on ResNets than
    ``"global"``, which ranks units without regard to what they save.

    Attributes:
        taps: Whether taps of a kernel have coefficients of their own.
        lambda_rel: λ as a share of the mean of K's diagonal.
        centred: Use covariances, and let the readers' biases take up the means; at the border of a
            map that a convolution pads with zeros the constant is too large.
        sequential: Refit layers one after another, each on what it gets once those before it have
            been, towards what it gave before any was. Where groups come in the order of the layers,
            the program and what becomes of it are run once each, stage by stage on all data.
        order: Score with weights ``refitted`` after each removal, or as they were ``original``.
        inputs: Most inputs of a layer that get a Gram matrix each; where there are more, taps
            share their coefficients, and then the places of a unit too.
        samples: How many samples at most; None for all.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    taps: bool = True
    lambda_rel: NotNegative = 1e-3
    centred: bool = False
    sequential: bool = False
    order: Order = "refitted"
    inputs: Count = 8192
    samples: Count | None = None

    @property
    def own_reconstruction(self) -> Reconstruction:
        return self

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> Fitted:
        """Look at the data once, for all groups.

        Raises:
            PlanError: There are no data, or a group has units that no layer reads.
        """
        require_data(program, type(self).__name__)
        own = {group: self._readers(program, group) for group in groups}
        kinds = {group: _kind(found, self.inputs) for group, found in own.items()}
        reads = {
            group: tuple(dict.fromkeys(read for one in found for read in one.reads))
            for group, found in own.items()
        }
        notes = [
            f"{group.name}: taps of a kernel share their coefficients, because a layer has more "
            f"than inputs={self.inputs} inputs by tap, or takes several units as one"
            for group in groups
            if self.taps and not _has_taps(own[group])
            if _has_taps(readers(program, group, taps=True))
        ]
        return Fitted(program, self, own, kinds, self._inputs(program, reads, kinds), notes=notes)

    def _inputs(
        self,
        program: Program,
        reads: Mapping[ChannelGroup, Sequence[Read]],
        kinds: Mapping[ChannelGroup, Grams],
    ) -> Inputs:
        """What layers get: looked at now for all groups, or later layer by layer."""
        who = type(self).__name__
        if self.sequential:
            return InOrder(program, reads, kinds, who, self.samples)
        found = moments(
            program,
            list(reads),
            gram=kinds.__getitem__,
            reads=reads.__getitem__,
            who=who,
            samples=self.samples,
        )
        return Gathered(found)

    def declines(self, program: Program, group: ChannelGroup) -> str | None:
        reason = unread(program, group)
        if reason is None and self.centred:
            reason = takes_no_constant(program, [o for o in readers(program, group) if not o.tied])
        return reason

    def _readers(self, program: Program, group: ChannelGroup) -> tuple[Reader, ...]:
        """With taps of their own where that is asked for and not too wide."""
        found = readers(program, group, self.taps)
        return found if _kind(found, self.inputs) != "units" else readers(program, group)

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.prepare(program, (group,)).score(program, group)

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return self.prepare(program, (group,)).edits(program, group, kept)


@dataclass(frozen=True, eq=False)
class Fitted(Criterion, Reconstruction):
    """`LeastSquaresPruning` in one plan, with the moments it needs.

    Attributes:
        program: As it was.
        options: What to do.
        readers: Of each group.
        kinds: What each group's Gram matrices are over.
        inputs: What the layers that read each group get.
        changed: What became of each weight so far.
        notes: For the report.
    """

    program: Program
    options: LeastSquaresPruning
    readers: Mapping[ChannelGroup, tuple[Reader, ...]]
    kinds: Mapping[ChannelGroup, Grams]
    inputs: Inputs
    changed: dict[str, Changed] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        systems = [self._system(group, one, one.columns(program))[0] for one in self.readers[group]]
        updates = self.options.order == "refitted"
        return Greedy(systems, group.cells, group.units, updates).importance()

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        stay = torch.zeros(group.cells, group.units, dtype=torch.bool)
        stay.scatter_(1, kept.expand(group.cells, -1), True)
        found: list[Edit] = [Project(group, kept)]
        pairs = self.inputs.after(group, self._done())
        for one in self.readers[group]:
            if one.tied:
                self.notes.append(
                    f"{one.weight} writes group {group.name} too and was not refitted to it"
                )
                continue
            found += self._refit(program, group, one, stay, pairs)
        self.inputs.done(group)
        return tuple(found)

    def _refit(
        self,
        program: Program,
        group: ChannelGroup,
        one: Reader,
        stay: Tensor,
        pairs: Mapping[Read, Paired],
    ) -> list[Edit]:
        """Refit one layer, to all that it gave, on those of its inputs that no group has lost.

        Where this group's matrix is over all inputs at once, what was made up for before is made
        up for again, with the others; elsewhere the layer starts from what it has become.
        """
        kind, changed = self.kinds[group], self._changed(one)
        left = ~changed.gone[one.index].any(3)
        whole = kind == "cells"
        start = one.columns(self.program) if whole else one.columns(program) * left.unsqueeze(3)
        system, mean, other = self._system(group, one, start, pairs)
        places = stay.to(left.device).unsqueeze(2) & left
        mask = stay.to(left.device) if kind == "units" else aligned(places, kind)
        new = system.refitted(mask).reshape(one.index.shape) * places.unsqueeze(3)
        offsets: list[Edit] = []
        if self.options.centred:
            before, after = (contributions(w, m, kind) for w, m in ((start, mean), (new, other)))
            offsets.append(
                Offset(one.weight, one.sums(changed.shifted(one, before - after, whole)))
            )
        changed.without(one, places, one.replaced(self.program, new), offsets)
        columns = torch.where(places.unsqueeze(3), new, one.columns(program))
        return [Replace(one.weight, one.replaced(program, columns)), *offsets]

    def _changed(self, one: Reader) -> Changed:
        """What became of a weight so far."""
        size = torch.Size(one.shape).numel()
        none = torch.zeros(size, dtype=torch.float64, device=one.index.device)
        return self.changed.setdefault(one.weight, Changed(none.bool(), none))

    def _done(self) -> list[Edit]:
        """What has become of all weights so far."""
        return [edit for own in self.changed.values() for edit in own.edits]

    def _system(
        self,
        group: ChannelGroup,
        one: Reader,
        columns: Tensor,
        pairs: Mapping[Read, Paired] | None = None,
    ) -> tuple[System, Tensor, Tensor]:
        """The reader as a linear map, and the means of its inputs before and now."""
        options = self.options
        if pairs:
            gram, cross, mean, other = one.pooled(pairs, "gram", "cross", "mean", "other")
        else:
            gram, mean = one.pooled(self.inputs.before(group, self._done()), "gram", "mean")
            cross, other = gram, mean
        if options.centred:
            gram = gram - other.unsqueeze(2) * other.unsqueeze(1)
            cross = cross - other.unsqueeze(2) * mean.unsqueeze(1)
        lines = aligned(columns, self.kinds[group])
        return System(gram, lines, options.lambda_rel, one.weight, cross), mean, other


def _has_taps(own: Sequence[Reader]) -> bool:
    return any(read.taps > 1 for one in own for read in one.reads)


def _kind(own: Sequence[Reader], widest: int) -> Grams:
    """What the Gram matrices of a group are over."""
    if not all(one.aligned for one in own):
        return "units"
    width = max((one.index[..., 0].numel() for one in own), default=0)
    if all(one.joint for one in own) and width <= widest:
        return "cells"
    alone = max((one.index[0, ..., 0].numel() for one in own), default=0)
    return "places" if alone <= widest else "units"


LeastSquares = LeastSquaresPruning
"""The name it has as a criterion and a reconstruction."""
