"""The weights that read a group's units, as matrices from the inputs that carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxcompress.axes import leaves
from fxcompress.budget import Recipe
from fxcompress.calibrate import Features, Moments, moments, places_of, unit_signals
from fxcompress.errors import PlanError
from fxcompress.graph import find_tensor
from fxcompress.groups import ChannelGroup, Site
from fxcompress.members import consumers
from fxcompress.passes.scores import (
    AGGREGATES,
    NORMALISERS,
    Aggregate,
    Normaliser,
    combined,
    normalised,
    one_of,
)
from fxcompress.program import Program
from fxcompress.tensors import names_of

TABLE = ("produce", "table")


@dataclass(frozen=True, eq=False)
class Reader:
    """A weight that sums over a group's units.

    An *input* is one column of a linear layer, or one input channel of a convolution: a unit has
    one for each of its places on the weight's axis (one as a channel, one for each position of a
    flattened map, one for each dim as a head).

    Attributes:
        weight: Its name.
        site: The axis that holds the units.
        values: Names of the nodes whose tensors it reads, one for each call.
        index: Where the entries of each input lie in the flat weight, shape
            (cells, units, places, entries).
        shape: The weight's shape.
        tied: Whether the same tensor writes the units too, so that it cannot change.
        joint: Whether it sums over the cells as well.
        lined: Whether a unit has the same places in the weight as in the values; it has not where
            the groups of a convolution hold a copy each.
    """

    weight: str
    site: Site
    values: tuple[str, ...]
    index: Tensor = field(repr=False)
    shape: tuple[int, ...]
    tied: bool
    joint: bool
    lined: bool

    def columns(self, program: Program) -> Tensor:
        """The entries of each input, float64, shape (cells, units, places, entries)."""
        return _value(program, self.weight).to(torch.float64).flatten()[self.index]

    def replaced(self, program: Program, columns: Tensor) -> Tensor:
        """The weight with other entries of the inputs."""
        old = _value(program, self.weight)
        new = old.clone().flatten()
        new[self.index] = columns.to(new)
        return new.reshape(old.shape)

    def sums(self, columns: Tensor) -> Tensor:
        """Entries of inputs summed for each output of the layer: over inputs and kernel taps.

        Raises:
            PlanError: The weight's first axis is not that of the outputs.
        """
        if self.site.dim == 0:
            raise PlanError(
                f"{self.weight} has its inputs on axis 0 (a transposed layer), so no shift of its "
                "outputs is known; leave it out with exclude=, or use a method without one"
            )
        total = torch.zeros(self.shape[0], dtype=columns.dtype, device=columns.device)
        stride = self.index.new_tensor(self.shape[1:]).prod()
        return total.index_add_(0, (self.index // stride).flatten(), columns.flatten())

    def features(self, found: Moments) -> Features:
        """The moments of each input it reads, over all its calls; shape (cells, units, places).

        Where places of the values are copies that share a column, they are pooled.
        """
        own = [one for name in self.values if (one := found.each[name].features) is not None]
        count = sum(one.count for one in own)
        mean = torch.stack([one.mean * (one.count / count) for one in own]).sum(0)
        square = torch.stack([one.square * (one.count / count) for one in own]).sum(0)
        if self.lined:
            return Features(mean, square, count)
        places = mean.shape[2]
        return Features(mean.mean(2, keepdim=True), square.mean(2, keepdim=True), count * places)

    def pooled(self, found: Mapping[str, Any], *parts: str) -> list[Tensor]:
        """Means over all its calls of parts of what was found for each value, by sample."""
        own = [found[name] for name in self.values]
        count = sum(one.count for one in own)
        shares = [one.count / count for one in own]
        return [
            torch.stack([getattr(o, p) * w for o, w in zip(own, shares, strict=True)]).sum(0)
            for p in parts
        ]


def readers(program: Program, group: ChannelGroup) -> tuple[Reader, ...]:
    """Every weight that sums over the units of `group`, once, in the order of their parameters."""
    calls: dict[tuple[str, int], list[str]] = {}
    sites: dict[tuple[str, int], Site] = {}
    for consumer in consumers(program, group):
        key = (consumer.weight, consumer.site.dim)
        sites[key] = consumer.site
        calls.setdefault(key, []).append(consumer.value)
    names = names_of(program.module)
    writers = {site.parameter for site in group.sites if site.role in TABLE}
    found = []
    for key, values in calls.items():
        site, value = sites[key], _value(program, key[0])
        axes = program.analysis.axes(site.parameter)
        held = program.analysis.coupling.axes
        places = {places_of(held[name], group.factor, group.over) for name in values}
        numbered = torch.arange(value.numel(), device=value.device).reshape(value.shape)
        index = unit_signals(numbered, axes, group.factor, group.over, site.dim)
        found.append(
            Reader(
                weight=site.parameter,
                site=site,
                values=tuple(values),
                index=index,
                shape=tuple(value.shape),
                tied=not writers.isdisjoint(names.get(site.parameter, (site.parameter,))),
                joint=set(group.over) <= set(leaves(axes[site.dim])),
                lined=places == {index.shape[2]},
            )
        )
    return tuple(found)


def _value(program: Program, name: str) -> Tensor:
    value = find_tensor(program.module, name)
    assert value is not None
    return value.detach()


@dataclass(frozen=True, kw_only=True, repr=False)
class ByInputs(Recipe):
    """Base of criteria that look at the inputs of the layers that read a group.

    Attributes:
        aggregate: How several layers that read a group are combined.
        normaliser: What makes the scores of groups comparable, for global budgets.
        samples: How many samples at most; None for all.
    """

    aggregate: Aggregate = "mean"
    normaliser: Normaliser = "mean"
    samples: int | None = None

    def __post_init__(self) -> None:
        one_of("aggregate", self.aggregate, AGGREGATES)
        one_of("normaliser", self.normaliser, NORMALISERS)

    def seen(self, program: Program, groups: Sequence[ChannelGroup]) -> dict[ChannelGroup, Moments]:
        """Moments of all groups, from one pass over the data.

        Raises:
            PlanError: There are no data, or a group has units that no layer reads.
        """
        who = type(self).__name__
        return moments(program, groups, gram="none", who=who, samples=self.samples)

    def over_readers(self, each: list[Tensor]) -> Tensor:
        """The score of a group from those of the layers that read it."""
        return normalised(combined(each, self.aggregate), self.normaliser)
