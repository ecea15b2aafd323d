"""The weights of a group as matrices: what produces its units, and what consumes them.

All values are float64, whatever the model's type is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, fx

from fxcompress.analysis.groups import ChannelGroup, Site
from fxcompress.axes.expressions import Concat, Expr, Factor, leaves
from fxcompress.canonicalize.norms import NormedMap, normed_maps
from fxcompress.graph.metadata import parameter_of
from fxcompress.graph.parameters import read_tensor
from fxcompress.graph.schema import arguments, packet_of
from fxcompress.layers.maps import Mapped
from fxcompress.layers.units import Units, units_on

Rows = Literal["raw", "effective"]


@dataclass(frozen=True, eq=False)
class Norm:
    """The BatchNorm that alone reads a producer; in evaluation z becomes scale·z + shift.

    Attributes:
        weight: Name of its scale g, if it has one.
        bias: Name of its shift b, if it has one.
        mean: Name of the running mean.
        variance: Name of the running variance.
        eps: Added to the variance.
        scale: g/s with s = √(variance + eps), shape (cells, units, copies).
        shift: b - g·mean/s, shape (cells, units, copies).
    """

    weight: str | None
    bias: str | None
    mean: str
    variance: str
    eps: float
    scale: Tensor
    shift: Tensor
    node: str


@dataclass(frozen=True, eq=False)
class Producer:
    """A weight that writes the units.

    A unit that stands for several channels, such as a head or one dim of all heads, has several
    *copies*; most have one. Parts of a fused weight (query and key) that hold the same units are a
    producer each.

    Attributes:
        weight: Name of the weight.
        rows: All entries of each unit, the copies side by side, shape (cells, units, m).
        bias: Name of the bias, if there is one.
        offset: The bias of each unit, zeros without one, shape (cells, units, copies).
        norm: The BatchNorm that alone reads it.
        normed: The rows once the norm is folded into them, of the same shape.
        filters: Whether it filters each unit by itself, as a depthwise convolution does: then its
            rows span no space of signals.
        part: Which part of a fused weight it is.
        site: The axis of the weight that holds the units.
        nodes: Names of the calls; a layer that is called several times has several.
    """

    weight: str
    rows: Tensor = field(repr=False)
    bias: str | None
    offset: Tensor = field(repr=False)
    norm: Norm | None
    normed: Tensor = field(repr=False)
    filters: bool
    part: int
    site: Site
    nodes: tuple[str, ...]

    def matrix(self, rows: Rows = "raw", bias: bool = True) -> Tensor:
        """The units as vectors.

        Args:
            rows: ``raw`` as stored, or ``effective``: with the BatchNorm folded in.
            bias: Whether the bias (of each copy) follows as a last column.

        Returns:
            Shape (cells, units, m), or (cells, units, m + copies) with biases.
        """
        own = self.normed if rows == "effective" else self.rows
        if not bias:
            return own
        return torch.cat([own, self.offsets if rows == "effective" else self.offset], 2)

    @cached_property
    def offsets(self) -> Tensor:
        """The biases once the norm is folded into them, shape (cells, units, copies)."""
        if self.norm is None:
            return self.offset
        return self.norm.scale * self.offset + self.norm.shift


@dataclass(frozen=True, eq=False)
class Consumer:
    """A call of a linear map that sums over the units.

    A layer that is called several times is a consumer each time, with the same weight.

    Attributes:
        weight: Name of the weight.
        columns: All entries of each unit, shape (cells, units, m).
        node: Name of the call.
        value: Name of the node whose tensor carries the units in.
        site: The axis of the weight that holds the units.
    """

    weight: str
    columns: Tensor = field(repr=False)
    node: str
    value: str
    site: Site


def producers(program: Mapped, group: ChannelGroup) -> tuple[Producer, ...]:
    """What writes the units of `group`: layers and tables, in the order of their parameters."""
    norms = {pair.weight: pair for pair in normed_maps(program.module)[0]}
    found: list[Producer] = []
    for site in group.sites:
        calls = _calls(program, site.parameter)
        if site.role in ("produce", "table") and calls and not _is_vector(program, site):
            pair = norms.get(site.parameter)
            found.extend(_producers(program, group, site, calls, pair))
    return tuple(found)


def consumers(program: Mapped, group: ChannelGroup) -> tuple[Consumer, ...]:
    """What sums over the units of `group`, in the order of their parameters and calls."""
    found: list[Consumer] = []
    for site in group.sites:
        if site.role != "contract":
            continue
        columns = _rows(program, group, site.parameter, site.dim)
        for call in _calls(program, site.parameter):
            carriers = _carriers(program, call, group.factor)
            found += [
                Consumer(site.parameter, columns, call.name, value.name, site)
                for value in carriers[:1]
            ]
    return tuple(found)


def entries(
    program: Mapped,
    group: ChannelGroup,
    producer: Producer,
    name: str,
    value: Tensor | None = None,
) -> Tensor:
    """What else a producer has for each of its units: gradients, or the vectors of its norm.

    Args:
        program: The program.
        group: The group.
        producer: One of its producers.
        name: Its weight, its bias, or a tensor of its norm.
        value: Of that shape, such as a gradient; None for its own. The result: (cells, units, m).
    """
    tensor = _double(program, name) if value is None else value
    return units_in(program, group, producer, name).read(tensor).flatten(2)


def units_in(program: Mapped, group: ChannelGroup, producer: Producer, name: str) -> Units:
    """Where a producer's units lie in its weight, in its bias or in a tensor of its norm."""
    dim = producer.site.dim if name == producer.weight else 0
    return units_on(program.analysis.axes(name), dim, group.factor, group.over, producer.part)


def _is_vector(program: Mapped, site: Site) -> bool:
    """A bias or a scale is no linear map of the units' own."""
    return len(program.analysis.axes(site.parameter)) < 2


def _producers(
    program: Mapped,
    group: ChannelGroup,
    site: Site,
    calls: list[fx.Node],
    pair: NormedMap | None,
) -> Iterator[Producer]:
    bias = _bias(program, calls[0])
    held = program.analysis.axes(site.parameter)
    filters = (
        bool(_carriers(program, calls[0], group.factor))
        and sum(group.factor in leaves(expr) for expr in held) == 1
        and site.role == "produce"
    )
    for part in _parts(held[site.dim], group.factor):
        rows = _rows(program, group, site.parameter, site.dim, part)
        none = torch.zeros(group.cells, group.units, 1, dtype=torch.float64)
        yield Producer(
            weight=site.parameter,
            rows=rows,
            bias=bias,
            offset=none.to(rows.device) if bias is None else _rows(program, group, bias, 0, part),
            norm=None if pair is None else _norm(program, group, pair, part),
            normed=rows if pair is None else _normed(program, group, site, pair, part),
            filters=filters,
            part=part,
            site=site,
            nodes=tuple(call.name for call in calls),
        )


def _norm(program: Mapped, group: ChannelGroup, pair: NormedMap, part: int) -> Norm:
    scale, shift = (
        _rows(program, group, pair.mean, 0, part, value) for value in pair.affine(program.module)
    )
    names = (pair.scale, pair.shift, pair.mean, pair.variance)
    return Norm(*names, pair.eps, scale, shift, pair.norm.name)


def _normed(program: Mapped, group: ChannelGroup, site: Site, pair: NormedMap, part: int) -> Tensor:
    """The rows of the weight times the norm's scale."""
    scale, _ = pair.affine(program.module)
    one = next(one for one in program.maps if one.node == pair.node.name)
    scaled = _double(program, site.parameter) * one.at_outputs(scale)
    return _rows(program, group, site.parameter, site.dim, part, scaled)


def _parts(expr: Expr, factor: Factor) -> list[int]:
    """The numbers of the parts of a fused axis that hold the units; 0 where it is not fused."""
    if not isinstance(expr, Concat):
        return [0]
    return [number for number, part in enumerate(expr.parts) if factor in leaves(part)]


def _rows(
    program: Mapped,
    group: ChannelGroup,
    name: str,
    dim: int,
    part: int | None = None,
    value: Tensor | None = None,
) -> Tensor:
    """The entries of each unit on one axis of a parameter, of one part of it, or of other values
    with the same axes.
    """
    tensor = _double(program, name) if value is None else value
    axes = program.analysis.axes(name)
    return units_on(axes, dim, group.factor, group.over, part).read(tensor).flatten(2)


def _double(program: Mapped, name: str) -> Tensor:
    return read_tensor(program.module, name).double()


def _calls(program: Mapped, name: str) -> list[fx.Node]:
    """The nodes that combine a parameter with a value; it may be transposed or cast before."""
    found: list[fx.Node] = []
    for source in program.module.graph.find_nodes(op="get_attr", target=name):
        pending = [source]
        while pending:
            for user in pending.pop().users:
                alone = len(user.all_input_nodes) == 1 and user.op != "output"
                (pending if alone else found).append(user)
    return [node for node in dict.fromkeys(found) if node.op != "output"]


def _carriers(program: Mapped, call: fx.Node, factor: Factor) -> list[fx.Node]:
    """The operands of a call, parameters aside, that hold the units."""
    axes = program.analysis.coupling.axes
    return [
        node
        for node in call.all_input_nodes
        if parameter_of(node) is None
        and any(factor in leaves(expr) for expr in axes.get(node.name, ()))
    ]


def _bias(program: Mapped, call: fx.Node) -> str | None:
    """The parameter that a call adds as its bias."""
    name = parameter_of(arguments(call).get("bias")) if packet_of(call) else None
    return name if name in program.analysis.coupling.parameters else None
