"""The order of nodes: parameters are read where they are used."""

from __future__ import annotations

from torch import fx

from fxcompress.graph.captured import CapturedModule


def sink_parameters(module: CapturedModule) -> int:
    """Move each parameter's node to just before its first user; say how many moved.

    The exporter reads all parameters first. An interpreter that makes something of each (a masked
    copy, a copy in another precision) would then hold all of them at once.
    """
    place = {node: number for number, node in enumerate(module.graph.nodes)}
    moved = 0
    for node in list(module.graph.nodes):
        if node.op != "get_attr" or not node.users:
            continue
        first = min(node.users, key=place.__getitem__)
        if _after_parameters(node) is not first:
            first.prepend(node)
            moved += 1
    return moved


def _after_parameters(node: fx.Node) -> fx.Node:
    """The first node behind `node` that reads no parameter."""
    node = node.next
    while node.op == "get_attr":
        node = node.next
    return node
