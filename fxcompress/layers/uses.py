"""What reads a parameter, by itself or through views and casts of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import parameter_of
from fxcompress.layers.layouts import hands_on
from fxcompress.layers.maps import LinearMap


@dataclass(frozen=True)
class Use:
    """A node that uses a parameter's entries.

    Attributes:
        operand: Name of the node that hands them to it: the read of the parameter, or the last of
            its views.
        node: Name of the node.
    """

    operand: str
    node: str


def uses_of(module: CapturedModule, name: str) -> tuple[Use, ...]:
    """The uses of a parameter, in the graph's order for each of its reads."""
    reads = module.graph.find_nodes(op="get_attr")
    return tuple(use for read in reads if parameter_of(read) == name for use in _uses(read))


def _uses(node: fx.Node) -> Iterator[Use]:
    for user in node.users:
        if hands_on(user):
            yield from _uses(user)
        else:
            yield Use(node.name, user.name)


def only_multiplies(module: CapturedModule, maps: Sequence[LinearMap]) -> bool:
    """Whether nothing but these linear maps, all of one weight, uses that weight."""
    known = {Use(one.contraction.weight, one.node) for one in maps}
    return known.issuperset(uses_of(module, maps[0].weight))
