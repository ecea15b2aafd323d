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
from fxcompress.stats.observe import observe

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
    sums: dict[str, list[_Sum]] = {}
    owned: dict[ChannelGroup, dict[Read, _Sum]] = {}
    for group in groups:
        taken = dict.fromkeys(_values(program, group) if reads is None else reads(group))
        if not taken:
            raise PlanError(
                f"{who}: no layer reads group {group.name} ({group.kind}), so its units have no "
                "moments there; leave it out with dims= or exclude=, or prune it by another method"
            )
        kind = gram(group) if callable(gram) else gram
        owned[group] = {read: _Sum(program, group, read, kind, who) for read in taken}
        for read, one in owned[group].items():
            sums.setdefault(read.value, []).append(one)
    taps = {name: _tap(own) for name, own in sums.items()}
    observe(program, taps, who=who, samples=samples)
    return {group: _pooled(owned.pop(group), reads is None) for group in tuple(owned)}


def _values(program: Program, group: ChannelGroup) -> Iterable[Read]:
    return (Read(consumer.value) for consumer in consumers(program, group))


@checked(PlanError)
def aligned(entries: Units, gram: Grams) -> Tensor:
    """Entries by unit, (cells, units, places, …), as rows of the Gram matrices asked for."""
    if gram == "cells":
        return entries.flatten(0, 2).unsqueeze(0)
    return entries.flatten(1, 2) if gram == "places" else entries.flatten(2)


def products(rows: Tensor) -> Tensor:
    """Rows in the type that products are taken in: float32 is enough over one batch, and twice as
    fast; sums over batches are float64.
    """
    return rows if rows.dtype == torch.float64 else rows.to(torch.float32)


def _tap(sums: list[_Sum]) -> Callable[[Tensor], None]:
    def tap(value: Tensor) -> None:
        for one in sums:
            one.add(value)

    return tap


class _Sum:
    """Running sums over one node's values."""

    def __init__(
        self, program: Program, group: ChannelGroup, read: Read, gram: Grams, who: str
    ) -> None:
        self.group, self.read, self.kind, self.who = group, read, gram, who
        self.axes = program.analysis.coupling.axes[read.value]
        self.gram = self.first = self.second = torch.zeros(())
        self.count = 0

    def add(self, value: Tensor) -> None:
        for signals in self.read.signals(value, self.axes, self.group.factor, self.group.over):
            first = products(signals).sum(3).to(torch.float64)
            second = torch.linalg.vector_norm(signals, dim=3, dtype=torch.float64).square()
            if not bool(torch.isfinite(second).all()):
                raise PlanError(
                    f"{self.who}: the value of {self.read.value}, which carries group "
                    f"{self.group.name}, is not finite on the data; look at the data and the "
                    "checkpoint"
                )
            self.count += signals.shape[3]
            self.first = self.first.to(first) + first
            self.second = self.second.to(second) + second
            if self.kind != "none":
                rows = products(aligned(signals, self.kind))
                new = rows @ rows.mT
                self.gram = self.gram.add_(new) if self.gram.dim() else new.to(torch.float64)

    def vectors(self) -> tuple[Tensor, Tensor, int]:
        """Sums and sums of squares along the matrix's rows, and over how many samples."""
        if self.kind in ("places", "cells"):
            return aligned(self.first, self.kind), aligned(self.second, self.kind), self.count
        return self.first.sum(2), self.second.sum(2), self.count * self.first.shape[2]

    @property
    def features(self) -> Features:
        """Moments of single inputs."""
        return Features(self.first / self.count, self.second / self.count, self.count)


def _pooled(sums: Mapping[Read, _Sum], together: bool) -> Moments:
    own = list(sums.values())
    alike = all(one.first.shape[2] == own[0].first.shape[2] for one in own)
    together &= alike or own[0].kind in ("units", "none")
    if together and len(own) > 1:  # before the sums become means, in place
        return replace(_moments(own), each={read: _mean(one) for read, one in sums.items()})
    each = {read: _mean(one) for read, one in sums.items()}
    if together:
        return replace(*each.values(), each=each)
    none = torch.zeros(0)
    return Moments(none, none, none, sum(one.count for one in own), None, each)


def _mean(one: _Sum) -> Moments:
    """The moments over the values of one node; the sum of products becomes their mean."""
    first, second, count = one.vectors()
    mean, square = first / count, second / count
    variance = Features(mean, square, count).variance
    return Moments(one.gram.div_(count), mean, variance, count, one.features)


def _moments(sums: list[_Sum]) -> Moments:
    """The moments over the values of several nodes together."""
    firsts, seconds, counts = zip(*(one.vectors() for one in sums), strict=True)
    count = sum(counts)
    mean, square = torch.stack(firsts).sum(0) / count, torch.stack(seconds).sum(0) / count
    gram = torch.stack([one.gram for one in sums]).sum(0) / count
    return Moments(gram, mean, Features(mean, square, count).variance, count)
