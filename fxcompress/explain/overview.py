"""How groups hang together: which layers read one and write another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import networkx as nx

from fxcompress.analysis.alike import common_name, without_numbers
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.explain.flow import layer_of

WRITES = ("produce", "table")
LEFT_OUT = "left_out"
"""Key in ``graph.graph``: how many edges are implied by others and not shown."""
_EDGES = 90
_LABELS = 60
_LONGEST = 28


def overview(groups: Sequence[ChannelGroup]) -> nx.DiGraph[str]:
    """Vertices with ``lines``, ``kind`` and ``marked``; edges with a ``label``, and ``both`` where
    layers lead both ways.
    """
    graph: nx.DiGraph[str] = nx.DiGraph()
    groups = sorted(groups, key=lambda group: any(s.role in WRITES for s in group.sites))
    order = {group.name: number for number, group in enumerate(groups)}
    for group in groups:
        cells = f" x {group.cells}" if group.cells > 1 else ""
        lines = (group.name, f"{group.units}{cells} units ({group.kind})")
        kind = "frozen" if group.frozen else "group"
        graph.add_node(group.name, lines=lines, kind=kind, marked=False, members=[group.name])
    for (first, second), layers in _layers(groups).items():
        forward = order[first] < order[second]
        edge = (first, second) if forward else (second, first)
        known = graph.get_edge_data(*edge, default={"layers": [], "ways": set()})
        ways, every = known["ways"] | {forward}, [*known["layers"], *layers]
        graph.add_edge(*edge, layers=every, ways=ways)
    for *_, data in graph.edges(data=True):
        data["both"] = len(data["ways"]) > 1
        data["back"] = data["ways"] == {False}
    return _labelled(_reduced(_merged(graph)))


def _layers(groups: Sequence[ChannelGroup]) -> dict[tuple[str, str], list[str]]:
    """The layers that read one group and write another, for each pair."""
    reads, writes = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for group in groups:
        for site in group.sites:
            if site.role == "contract":
                reads[site.parameter].append(group.name)
            elif site.role == "produce":
                writes[site.parameter].append(group.name)
    found = defaultdict[tuple[str, str], list[str]](list)
    for parameter, sources in reads.items():
        for first in sources:
            for second in writes.get(parameter, ()):
                if first != second:
                    found[first, second].append(layer_of(parameter))
    return found


def _merged(graph: nx.DiGraph[str]) -> nx.DiGraph[str]:
    """With one vertex for groups that are alike and hang on the very same others."""
    alike = defaultdict[tuple[object, ...], list[str]](list)
    for vertex, data in graph.nodes(data=True):
        ends = frozenset(graph.predecessors(vertex)), frozenset(graph.successors(vertex))
        alike[without_numbers(vertex), data["lines"][1], data["kind"], *ends].append(vertex)
    for first, *others in (own for own in alike.values() if len(own) > 1):
        for vertex in others:
            for a, b in [*graph.in_edges(vertex), *graph.out_edges(vertex)]:
                kept = (first, b) if a == vertex else (a, first)
                graph.edges[kept]["layers"] += graph.edges[a, b]["layers"]
        name = f"{common_name([first, *others])} ({len(others) + 1})"
        kept_data = graph.nodes[first]
        kept_data.update(lines=(name, kept_data["lines"][1]), members=[first, *others])
        graph.remove_nodes_from(others)
    return graph


def _reduced(graph: nx.DiGraph[str]) -> nx.DiGraph[str]:
    """Without the edges that a longer way implies, where there are too many to see any."""
    graph.graph[LEFT_OUT] = 0
    if graph.number_of_edges() <= _EDGES:
        return graph
    kept = nx.transitive_reduction(graph)  # edges lead from earlier groups to later: no cycles
    gone = [edge for edge in graph.edges if not kept.has_edge(*edge)]
    graph.remove_edges_from(gone)
    graph.graph[LEFT_OUT] = len(gone)
    return graph


def _labelled(graph: nx.DiGraph[str]) -> nx.DiGraph[str]:
    """Name the layers of each edge, but those that a group is called after already."""
    shown = graph.number_of_edges() <= _LABELS
    for first, second, data in graph.edges(data=True):
        own = {name for end in (first, second) for name in graph.nodes[end]["members"]}
        named = {name.partition(":")[0] for name in own}
        layers = [layer for layer in dict.fromkeys(data["layers"]) if layer not in named]
        words = ", ".join(dict.fromkeys(_inside(second, layer) for layer in layers))
        data["label"] = (words if len(words) <= _LONGEST else f"{len(layers)} layers") * shown
    return graph


def _inside(group: str, layer: str) -> str:
    """The layer's name from the block of the group on, or of a block like it."""
    block = group.partition(":")[0].rpartition(".")[0]
    alike = without_numbers(layer).startswith(without_numbers(f"{block}."))
    return ".".join(layer.split(".")[block.count(".") + 1 :]) if block and alike else layer
