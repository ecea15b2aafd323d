"""Second moments of what the units of groups send to their consumers, in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fxcompress.calibrate.observe import observe
from fxcompress.calibrate.signals import unit_signals
from fxcompress.errors import PlanError
from fxcompress.groups import ChannelGroup
from fxcompress.members import consumers
from fxcompress.program import Program

Grams = Literal["units", "places", "cells", "none"]
"""Of what there is a Gram matrix: units of each cell with their places as samples, places of units
of each cell, places of units of all cells together, or nothing.
"""


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
        each: By the name of the node whose value is read.
    """

    gram: Tensor
    mean: Tensor
    variance: Tensor
    count: int
    features: Features | None = None
    each: Mapping[str, Moments] = field(default_factory=dict)

    @property
    def covariance(self) -> Tensor:
        """The centred Gram matrix: Σ (h - mean)(h - mean)ᵀ / N."""
        return self.gram - self.mean.unsqueeze(2) * self.mean.unsqueeze(1)


def moments(
    program: Program,
    groups: Iterable[ChannelGroup],
    *,
    gram: Grams | Callable[[ChannelGroup], Grams] = "units",
    who: str = "calibration",
    samples: int | None = None,
) -> dict[ChannelGroup, Moments]:
    """Moments of the units of groups over the program's data, streamed.

    A unit's signal is taken where a consumer reads it: after every activation, norm, pooling and
    depthwise layer. Positions of a map are samples, and so are a unit's places on its own axis
    unless ``gram="places"`` or ``"cells"``.

    Args:
        program: Run in evaluation mode on its task's data; it is not changed.
        groups: Whose moments; a group that no layer consumes (queries and keys) is refused.
        gram: Over what; or a function that tells for each group.
        who: The method that asks, for messages.
        samples: How many samples at most; None for all.

    Raises:
        PlanError: As `observe`; a group has no consumer; or a value is not finite.
    """
    sums: dict[str, list[_Sum]] = {}
    owned: dict[ChannelGroup, dict[str, _Sum]] = {}
    for group in groups:
        names = dict.fromkeys(consumer.value for consumer in consumers(program, group))
        if not names:
            raise PlanError(
                f"{who}: no layer reads group {group.name} ({group.kind}), so its units have no "
                "moments there; leave it out with dims= or exclude=, or prune it by another method"
            )
        kind = gram(group) if callable(gram) else gram
        owned[group] = {name: _Sum(program, group, name, kind, who) for name in names}
        for name, one in owned[group].items():
            sums.setdefault(name, []).append(one)
    taps = {name: _tap(own) for name, own in sums.items()}
    observe(program, taps, who=who, samples=samples)
    return {group: _pooled(own) for group, own in owned.items()}


def lined(entries: Tensor, gram: Grams) -> Tensor:
    """Entries by unit, (cells, units, places, …), as rows of the Gram matrices asked for."""
    if gram == "cells":
        return entries.flatten(0, 2).unsqueeze(0)
    return entries.flatten(1, 2) if gram == "places" else entries.flatten(2)


def _tap(sums: list[_Sum]) -> Callable[[Tensor], None]:
    def tap(value: Tensor) -> None:
        for one in sums:
            one.add(value)

    return tap


class _Sum:
    """Running sums over one node's values."""

    def __init__(
        self, program: Program, group: ChannelGroup, name: str, gram: Grams, who: str
    ) -> None:
        self.group, self.name, self.kind, self.who = group, name, gram, who
        self.axes = program.analysis.coupling.axes[name]
        self.gram = self.first = self.second = torch.zeros(())
        self.count = 0

    def add(self, value: Tensor) -> None:
        signals = unit_signals(value, self.axes, self.group.factor, self.group.over)
        if not bool(torch.isfinite(signals).all()):
            raise PlanError(
                f"{self.who}: the value of {self.name}, which carries group {self.group.name}, is "
                "not finite on the data; look at the data and the checkpoint"
            )
        wide = signals.to(torch.float64)
        self.count += wide.shape[3]
        self.first = self.first.to(wide) + wide.sum(3)
        self.second = self.second.to(wide) + wide.square().sum(3)
        if self.kind != "none":
            rows = lined(wide, self.kind).to(wide)
            self.gram = self.gram.to(wide) + rows @ rows.mT

    def vectors(self) -> tuple[Tensor, Tensor, int]:
        """Sums and sums of squares along the matrix's rows, and over how many samples."""
        if self.kind in ("places", "cells"):
            return lined(self.first, self.kind), lined(self.second, self.kind), self.count
        return self.first.sum(2), self.second.sum(2), self.count * self.first.shape[2]

    @property
    def features(self) -> Features:
        """Moments of single inputs."""
        return Features(self.first / self.count, self.second / self.count, self.count)


def _pooled(sums: Mapping[str, _Sum]) -> Moments:
    each = {name: _moments([one]) for name, one in sums.items()}
    own = list(sums.values())
    alike = all(one.first.shape[2] == own[0].first.shape[2] for one in own)
    if alike or own[0].kind in ("units", "none"):
        return replace(_moments(own), each=each)
    none = torch.zeros(0)
    return Moments(none, none, none, sum(one.count for one in own), None, each)


def _moments(sums: list[_Sum]) -> Moments:
    """The moments over the values of several nodes together."""
    firsts, seconds, counts = zip(*(one.vectors() for one in sums), strict=True)
    count = sum(counts)
    mean, square = torch.stack(firsts).sum(0) / count, torch.stack(seconds).sum(0) / count
    gram = torch.stack([one.gram for one in sums]).sum(0) / count
    variance = Features(mean, square, count).variance
    return Moments(gram, mean, variance, count, sums[0].features if len(sums) == 1 else None)
