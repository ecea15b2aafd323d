"""The weights that read a group's units, as matrices from the inputs that carry them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup, Site
from fxcompress.axes.expressions import leaves
from fxcompress.edit.offset import refuses_offset
from fxcompress.errors import PlanError
from fxcompress.graph.parameters import names_of, read_tensor
from fxcompress.layers.units import units_on
from fxcompress.layers.weights import Consumer, consumers
from fxcompress.program import Program
from fxcompress.stats import (
    Features,
    Moments,
    Read,
    places_of,
    window_of,
)

PRODUCING = ("produce", "table")


@dataclass(frozen=True, eq=False)
class Reader:
    """A weight that sums over a group's units.

    An *input* is one column of a linear layer, or one input channel of a convolution, or one tap of
    it: a unit has one for each of its positions on the weight's axis (one as a channel, one for
    each pixel of a flattened map, one for each dim as a head), and for each tap.

    Attributes:
        weight: Its name.
        site: The axis that holds the units.
        reads: What it reads, one for each call.
        index: Where the entries of each input lie in the flat weight, shape
            (cells, units, positions, entries).
        shape: The weight's shape.
        tied: Whether the same tensor produces the units too, so that it cannot change.
        joint: Whether it sums over the cells as well.
        aligned: Whether a unit has the same positions in the weight as in the values; it has not
            where the groups of a convolution hold a copy each.
    """

    weight: str
    site: Site
    reads: tuple[Read, ...]
    index: Tensor = field(repr=False)
    shape: tuple[int, ...]
    tied: bool
    joint: bool
    aligned: bool

    def columns(self, program: Program) -> Tensor:
        """The entries of each input, float64, shape (cells, units, positions, entries)."""
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
            raise PlanError(f"{_inputs_first(self.weight)}; leave it out with exclude=")
        total = torch.zeros(self.shape[0], dtype=columns.dtype, device=columns.device)
        stride = self.index.new_tensor(self.shape[1:]).prod()
        return total.index_add_(0, (self.index // stride).flatten(), columns.flatten())

    def features(self, found: Moments) -> Features:
        """The moments of each input it reads, over all its calls; shape (cells, units, positions).

        Where positions of the values are copies that share a column, they are pooled.
        """
        own = [one for read in self.reads if (one := found.each[read].features) is not None]
        count = sum(one.count for one in own)
        mean = torch.stack([one.mean * (one.count / count) for one in own]).sum(0)
        square = torch.stack([one.square * (one.count / count) for one in own]).sum(0)
        if self.aligned:
            return Features(mean, square, count)
        positions = mean.shape[2]
        return Features(mean.mean(2, keepdim=True), square.mean(2, keepdim=True), count * positions)

    def pooled(self, found: Mapping[Read, Any], *parts: str) -> list[Tensor]:
        """Means over all its calls of parts of what was found for each read, by sample."""
        own = [found[read] for read in self.reads]
        count = sum(one.count for one in own)
        shares = [one.count / count for one in own]
        return [
            torch.stack([getattr(o, p) * w for o, w in zip(own, shares, strict=True)]).sum(0)
            for p in parts
        ]


def readers(program: Program, group: ChannelGroup, taps: bool = False) -> tuple[Reader, ...]:
    """Every weight that sums over the units of `group`, once, in the order of their parameters.

    Args:
        program: The program.
        group: The group.
        taps: Whether every tap of a convolution is an input of its own.
    """
    calls: dict[tuple[str, int], list[Consumer]] = {}
    for consumer in consumers(program, group):
        calls.setdefault((consumer.weight, consumer.site.dim), []).append(consumer)
    names = names_of(program.module)
    produced = {site.parameter for site in group.sites if site.role in PRODUCING}
    return tuple(
        _reader(program, group, own, taps, tied=not produced.isdisjoint(names.get(name, (name,))))
        for (name, _), own in calls.items()
    )


def _reader(
    program: Program, group: ChannelGroup, calls: Sequence[Consumer], taps: bool, tied: bool
) -> Reader:
    site = calls[0].site
    value, axes = _value(program, site.parameter), program.analysis.axes(site.parameter)
    held = program.analysis.coupling.axes
    index = units_on(axes, site.dim, group.factor, group.over).entries_in(value)
    aligned = {places_of(held[call.value], group.factor, group.over) for call in calls} == {
        index.shape[2]
    }
    nodes = {node.name: node for node in program.module.graph.nodes}
    windows = [window_of(nodes[call.node]) if taps and aligned else None for call in calls]
    reads = tuple(
        Read(call.value, None if window is None or window.plain else window)
        for call, window in zip(calls, windows, strict=True)
    )
    index = index.unflatten(3, (-1, reads[0].taps)).transpose(3, 4).flatten(2, 3)
    return Reader(
        weight=site.parameter,
        site=site,
        reads=reads,
        index=index,
        shape=tuple(value.shape),
        tied=tied,
        joint=set(group.over) <= set(leaves(axes[site.dim])),
        aligned=aligned,
    )


def takes_no_constant(program: Program, own: Iterable[Reader]) -> str | None:
    """Why one of these readers' outputs cannot be shifted; None where all can."""
    for one in own:
        if one.site.dim == 0:
            return _inputs_first(one.weight)
        if (reason := refuses_offset(program.module, program.maps, one.weight)) is not None:
            return reason
    return None


def _inputs_first(weight: str) -> str:
    return (
        f"{weight} has its inputs on axis 0 (a transposed layer), so no shift of its outputs is "
        "known"
    )


def unread(program: Program, group: ChannelGroup) -> str | None:
    """Why a method that looks at what layers read cannot take a group; None where it can."""
    return None if consumers(program, group) else f"no layer reads it ({group.kind})"


def _value(program: Program, name: str) -> Tensor:
    return read_tensor(program.module, name)
