"""Second moments of what the units of groups send to their consumers, in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Count, Holds, checked
from fxcompress.errors import PlanError
from fxcompress.layers.inputs import Read
from fxcompress.layers.weights import consumers
from fxcompress.program import Program
from fxcompress.stats.collect import collect
from fxcompress.stats.gram import Gram
from fxcompress.stats.powers import Powers, products
from fxcompress.stats.statistic import Several, Statistic
from fxcompress.stats.walk import Wanted

Grams = Literal["units", "places", "cells", "none"]
"""Of what there is a Gram matrix: units of each cell with their places as samples, places of units
of each cell, places of units of all cells together, or nothing.
"""


Units = Annotated[Tensor, Holds("of three axes or more", lambda value: value.dim() > 2)]


@dataclass(frozen=True)
class Features:
    """Moments of single inputs of the consumer, all of shape (cells, units, places).

    A unit has one place for each column of a consumer that it takes: one as a channel, one for each
    position of a flattened map, one for each dim as a head.

    Attributes:
        mean: Mean.
        square: Mean of squares.
        count: How many samples each is over (batch and positions).
    """

    mean: Tensor
    square: Tensor
    count: int

    @property
    def variance(self) -> Tensor:
        """The unbiased estimate of the variance."""
        spread = (self.square - self.mean.square()).clamp(min=0)
        return spread * (self.count / max(self.count - 1, 1))


@dataclass(frozen=True)
class Moments:
    """Moments of a group's units; float64, on the model's device.

    Where several nodes are read (a residual stream), their samples are pooled, and `each` has the
    moments of every one alone.

    Attributes:
        gram: Σ h hᵀ / N of shape (cells, n, n), not centred, with n units; n = units·places where
            places were asked for (a unit's places side by side), and (1, n, n) with n =
            cells·units·places where cells were. Empty where none was asked for, or where the values
            of a group do not have the same places.
        mean: Σ h / N of the same, shape (cells, n).
        variance: Unbiased, shape (cells, n).
        count: N: samples, positions, and places of a unit where those are pooled.
        features: Moments of single inputs of the consumer; of a group with several values the
            features of each are in `each`.
        each: By what is read.
    """

    gram: Tensor
    mean: Tensor
    variance: Tensor
    count: int
    features: Features | None = None
    each: Mapping[Read, Moments] = field(default_factory=dict)

    @property
    def covariance(self) -> Tensor:
        """The centred Gram matrix: Σ (h - mean)(h - mean)ᵀ / N."""
        return self.gram - self.mean.unsqueeze(2) * self.mean.unsqueeze(1)


@checked(PlanError)
def moments(
    program: Program,
    groups: Iterable[ChannelGroup],
    *,
    gram: Grams | Callable[[ChannelGroup], Grams] = "units",
    reads: Callable[[ChannelGroup], Iterable[Read]] | None = None,
    who: str = "calibration",
    samples: Count | None = None,
) -> dict[ChannelGroup, Moments]:
    """Moments of the units of groups over the program's data, streamed.

    A unit's signal is taken where a consumer reads it: after every activation, norm, pooling and
    depthwise layer. Positions of a map are samples, and so are a unit's places on its own axis
    unless ``gram="places"`` or ``"cells"``.

    Args:
        program: Run in evaluation mode on its task's data; it is not changed.
        groups: Whose moments; a group that no layer consumes (queries and keys) is refused.
        gram: Over what; or a function that tells for each group.
        reads: What is read of each group, each for itself: nothing is pooled. None for the values
            that its consumers take.
        who: The method that asks, for messages.
        samples: How many samples at most; None for all.

    Raises:
        PlanError: As `observe`; a group has no consumer; or a value is not finite.
    """
    owned: dict[ChannelGroup, dict[Read, UnitMoments]] = {}
    for group in groups:
        taken = dict.fromkeys(_values(program, group) if reads is None else reads(group))
        if not taken:
            raise PlanError(
                f"{who}: no layer reads group {group.name} ({group.kind}), so its units have no "
                "moments there; leave it out with dims= or exclude=, or prune it by another method"
            )
        kind = gram(group) if callable(gram) else gram
        owned[group] = {read: UnitMoments(program, group, read, kind, who) for read in taken}
    wanted = [Wanted(read.value, one) for own in owned.values() for read, one in own.items()]
    collect(program, wanted, who=who, samples=samples)
    return {group: _pooled(owned.pop(group), reads is None) for group in tuple(owned)}


def _values(program: Program, group: ChannelGroup) -> Iterable[Read]:
    return (Read(consumer.value) for consumer in consumers(program, group))


@checked(PlanError)
def aligned(entries: Units, gram: Grams) -> Tensor:
    """Entries by unit, (cells, units, places, …), as rows of the Gram matrices asked for."""
    if gram == "cells":
        return entries.flatten(0, 2).unsqueeze(0)
    return entries.flatten(1, 2) if gram == "places" else entries.flatten(2)


class UnitMoments(Several[Tensor]):
    """Moments of a group's units in the values of one node, as one layer reads them.

    Its parts are ``inputs``, the moments of single inputs, and ``gram`` where one is asked for.
    """

    def __init__(
        self, program: Program, group: ChannelGroup, read: Read, gram: Grams, who: str
    ) -> None:
        self.inputs, self.products = Powers(), Gram()
        both: dict[str, Statistic[Tensor]] = {"inputs": self.inputs, "gram": self.products}
        super().__init__({"inputs": self.inputs} if gram == "none" else both)
        self.group, self.read, self.kind, self.who = group, read, gram, who
        self.axes = program.analysis.coupling.axes[read.value]

    def update(self, batch: Tensor) -> None:
        for signals in self.read.signals(batch, self.axes, self.group.factor, self.group.over):
            self.inputs.update(signals)
            if not bool(torch.isfinite(self.inputs.second).all()):
                raise PlanError(
                    f"{self.who}: the value of {self.read.value}, which carries group "
                    f"{self.group.name}, is not finite on the data; look at the data and the "
                    "checkpoint"
                )
            if self.kind != "none":
                self.products.update(products(aligned(signals, self.kind)))

    def vectors(self) -> tuple[Tensor, Tensor, int]:
        """Sums and sums of squares along the matrix's rows, and over how many samples."""
        first, second, count = self.inputs.first, self.inputs.second, self.inputs.count
        if self.kind in ("places", "cells"):
            return aligned(first, self.kind), aligned(second, self.kind), count
        return first.sum(2), second.sum(2), count * first.shape[2]

    @property
    def features(self) -> Features:
        """Moments of single inputs."""
        count = self.inputs.count
        return Features(self.inputs.first / count, self.inputs.second / count, count)

    def moments(self) -> Moments:
        """The moments; the sum of products becomes their mean, so that this is the end of it."""
        first, second, count = self.vectors()
        mean, square = first / count, second / count
        variance = Features(mean, square, count).variance
        gram = torch.zeros(()) if self.kind == "none" else self.products.total.div_(count)
        return Moments(gram, mean, variance, count, self.features)


def _pooled(sums: Mapping[Read, UnitMoments], together: bool) -> Moments:
    own = list(sums.values())
    alike = all(one.inputs.first.shape[2] == own[0].inputs.first.shape[2] for one in own)
    together &= alike or own[0].kind in ("units", "none")
    if together and len(own) > 1:  # before the sums become means, in place
        return replace(_moments(own), each={read: one.moments() for read, one in sums.items()})
    each = {read: one.moments() for read, one in sums.items()}
    if together:
        return replace(*each.values(), each=each)
    none = torch.zeros(0)
    return Moments(none, none, none, sum(one.inputs.count for one in own), None, each)


def _moments(sums: list[UnitMoments]) -> Moments:
    """The moments over the values of several nodes together."""
    firsts, seconds, counts = zip(*(one.vectors() for one in sums), strict=True)
    count = sum(counts)
    mean, square = torch.stack(firsts).sum(0) / count, torch.stack(seconds).sum(0) / count
    gram = torch.zeros(())
    if sums[0].kind != "none":
        gram = torch.stack([one.products.total for one in sums]).sum(0) / count
    return Moments(gram, mean, Features(mean, square, count).variance, count)
