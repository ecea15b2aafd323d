"""Which parameters of a layer are the filters that PROscores move, and where D acts beside them.

==========================  ======================  ================================================
a producer of the units     F                       D acts beside
==========================  ======================  ================================================
followed by BatchNorm       its scale and shift     the activation after the norm, else the norm
followed by an activation   its row and its bias    the activation (of a gate too)
neither (q, k, v, up, …)    its row and its bias    the row itself (the paper's form for attention)
==========================  ======================  ================================================
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.layers.weights import Producer, entries, producers
from fxcompress.passes.ippro.scores import Filters
from fxcompress.program import Program
from fxcompress.rules.pointwise import is_activation


@dataclass(frozen=True)
class Place:
    """The input and the output of what D acts beside, by the names of their nodes."""

    input: str
    output: str


@dataclass(frozen=True, eq=False)
class Target:
    """The filters of one producer of a group.

    Attributes:
        group: The group.
        producer: The producer.
        names: The parameters that F consists of.
        places: Where D acts, for every call of the layer; none where it acts on the row itself.
    """

    group: ChannelGroup
    producer: Producer
    names: tuple[str, ...]
    places: tuple[Place, ...]

    def filters(
        self, program: Program, grads: Mapping[str, Tensor], signal: Tensor | None
    ) -> Filters:
        """The filters with their gradients, shape (cells, units, copies, N).

        Args:
            program: Whose parameters.
            grads: Gradients by name, means over samples.
            signal: ∂L/∂D of every unit and place, shape (cells, units, places).
        """
        copies = self.producer.offset.shape[2]
        value, grad = ([self._columns(program, n, given, copies) for n in self.names]
                       for given in ({}, grads))  # fmt: skip
        return Filters(
            torch.cat(value, -1),
            torch.cat(grad, -1),
            _by_copy(signal, self.producer.offset),
            bare=not self.places,
        )

    def _columns(
        self, program: Program, name: str, given: Mapping[str, Tensor], copies: int
    ) -> Tensor:
        rows = entries(program, self.group, self.producer, name, given.get(name)).double()
        columns: Tensor = rows.unflatten(2, (copies, -1))
        return columns


def find_targets(program: Program, group: ChannelGroup) -> tuple[Target, ...]:
    """The filters of a group, one target for each producer."""
    nodes = {node.name: node for node in program.module.graph.nodes}
    return tuple(_target(nodes, group, producer) for producer in producers(program, group))


def _target(nodes: Mapping[str, fx.Node], group: ChannelGroup, producer: Producer) -> Target:
    norm = producer.norm
    ends = [nodes[name] for name in ((norm.node,) if norm else producer.nodes)]
    places = [_activation(end, producer.part) for end in ends]
    own = tuple(n for n in (norm.weight, norm.bias) if n) if norm else ()
    if own:
        beside = [
            place or Place(end.name, end.name) for place, end in zip(places, ends, strict=True)
        ]
        return Target(group, producer, own, tuple(beside))
    names = (producer.weight, *([producer.bias] if producer.bias else []))
    known = tuple(place for place in places if place)
    return Target(group, producer, names, known if len(known) == len(places) else ())


def _activation(node: fx.Node, part: int) -> Place | None:
    """The activation that alone reads a value, through ops that only look at it."""
    while (user := _reader(node, part)) is not None:
        if is_activation(user):
            return Place(node.name, user.name)
        if len(user.all_input_nodes) > 1 or user.op == "output":
            return None
        node = user
    return None


def _reader(node: fx.Node, part: int) -> fx.Node | None:
    """The only reader of a node; of one that is split, that of the part."""
    users = list(node.users)
    if len(users) == 1:
        return users[0]
    chosen = [user for user in users if _is_item(user, part)]
    return chosen[0] if chosen and all(_is_item(user, None) for user in users) else None


def _is_item(node: fx.Node, number: int | None) -> bool:
    return node.target is operator.getitem and number in (None, node.args[1])


def _by_copy(signal: Tensor | None, like: Tensor) -> Tensor:
    """One signal for each copy of a unit: places are copies, or all belong to one."""
    if signal is None:
        return torch.zeros_like(like)
    if signal.shape == like.shape:
        return signal.double()
    return signal.double().sum(2, keepdim=True).expand_as(like) / like.shape[2]
