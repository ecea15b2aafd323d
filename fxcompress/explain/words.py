"""Why axes move together, in words."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import networkx as nx

from fxcompress.analysis.alike import folded
from fxcompress.analysis.coupling import Coupling
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.expressions import Factor, leaves
from fxcompress.errors import PlanError
from fxcompress.explain.flow import WORDS, flow, layer_of
from fxcompress.graph.captured import CapturedModule

TOLD = {
    "written by": ("produce", "table"),
    "read by": ("contract",),
    "scaled by": ("affine", "statistic"),
}
"""How a layer that holds units in these roles is told of."""


def explain_groups(groups: Sequence[ChannelGroup], pattern: str) -> str:
    """The groups that hold a parameter of this name, or that are called so."""
    return "\n".join(_described(group) for group in matching_groups(groups, pattern))


def matching_groups(groups: Sequence[ChannelGroup], pattern: str) -> list[ChannelGroup]:
    """The groups that fit a glob by their name or by a parameter they hold.

    Raises:
        PlanError: There is none; with the nearest names.
    """
    found = [
        group
        for group in groups
        if fnmatchcase(group.name, pattern)
        or any(fnmatchcase(site.parameter, pattern) for site in group.sites)
    ]
    if not found:
        names = [group.name for group in groups] + [
            site.parameter for group in groups for site in group.sites
        ]
        raise PlanError(
            f"no group holds {pattern!r}; the nearest names are {_near(pattern, names)}"
        )
    return found


def _described(group: ChannelGroup) -> str:
    """A group by its layers; `ChannelGroup.explain` lists every axis."""
    cells = f" in each of {group.cells} cells" if group.cells > 1 else ""
    lines = [f"{group.name}: {group.units} units ({group.kind}){cells}"]
    told: set[str] = set()
    for words, roles in TOLD.items():
        layers = dict.fromkeys(layer_of(s.parameter) for s in group.sites if s.role in roles)
        fresh = [layer for layer in layers if layer not in told or words == "read by"]
        told.update(fresh)
        if fresh:
            lines.append(f"  {words:10} {', '.join(folded(fresh))}")
    if group.frozen:
        lines.append(f"  may not shrink: {group.frozen}")
    lines += [f"  not exact under zero-masking: {words}" for words in folded(group.inexact)]
    return "\n".join(lines)


def explain_path(
    module: CapturedModule,
    coupling: Coupling,
    groups: Sequence[ChannelGroup],
    first: str,
    second: str,
) -> str:
    """What ties two parameters: the way through the graph that the units they share take.

    Raises:
        PlanError: There is no parameter of that name.
    """
    _require(coupling, first, second)
    shared = _shared(coupling, first, second)
    if not shared:
        return f"{first} and {second} share no units: they do not move together"
    known = {group.factor: group for group in groups}
    lines: list[str] = []
    for (dim, other), factors in shared.items():
        start = f"axis {dim} of {first} and axis {other} of {second}"
        for factor in factors:
            if factor in known:
                group = known[factor]
                lines.append(f"{start} hold the same {group.units} units ({group}, {group.kind}):")
                way = _way(module, coupling, group, first, second)
            else:
                lines.append(f"{start} hold the same {factor.size} indices:")
                way = []
            lines += way or _chain(coupling, (first, dim), (second, other))
    return "\n".join(lines)


def _way(
    module: CapturedModule, coupling: Coupling, group: ChannelGroup, first: str, second: str
) -> list[str]:
    """The shortest way from layer to layer, against the arrows where it must be; none where only
    the weights themselves are tied.
    """
    graph = flow(module, coupling, group)
    start, end = _vertex(graph, first), _vertex(graph, second)
    both: nx.Graph[str] = graph.to_undirected(as_view=True)
    if start is None or end is None or not nx.has_path(both, start, end):
        return []
    path: list[str] = nx.shortest_path(both, start, end)
    return [f"  {_step(coupling, graph, vertex)}" for vertex in path]


def _vertex(graph: nx.DiGraph[str], parameter: str) -> str | None:
    return next((v for v, data in graph.nodes(data=True) if parameter in data["reads"]), None)


def _step(coupling: Coupling, graph: nx.DiGraph[str], vertex: str) -> str:
    data = graph.nodes[vertex]
    call = f"{coupling.calls.get(data['node'], data['lines'][0])} (node {data['node']})"
    if data["kind"] == "op":
        return f"by {call}"
    words = " and ".join(dict.fromkeys(WORDS[role] for role in data["roles"]))
    return f"{vertex} {words} them, by {call}"


def shared_groups(
    coupling: Coupling, groups: Sequence[ChannelGroup], first: str, second: str
) -> list[ChannelGroup]:
    """The groups whose units two parameters share.

    Raises:
        PlanError: There is no parameter of that name.
    """
    _require(coupling, first, second)
    factors = {factor for own in _shared(coupling, first, second).values() for factor in own}
    return [group for group in groups if group.factor in factors]


def _require(coupling: Coupling, *names: str) -> None:
    for name in names:
        if name not in coupling.parameters:
            near = _near(name, coupling.parameters)
            raise PlanError(f"the graph reads no parameter {name!r}; the nearest are {near}")


def _shared(coupling: Coupling, first: str, second: str) -> dict[tuple[int, int], list[Factor]]:
    shared: dict[tuple[int, int], list[Factor]] = {}
    for dim, expr in enumerate(coupling.parameters[first]):
        for other, target in enumerate(coupling.parameters[second]):
            common = [leaf for leaf in dict.fromkeys(leaves(expr)) if leaf in set(leaves(target))]
            if common and (first, dim) != (second, other):
                shared[dim, other] = common
    return shared


def _chain(coupling: Coupling, start: tuple[str, int], end: tuple[str, int]) -> list[str]:
    """The unifications that tie two axes that no layer holds as channels."""
    path: list[Any] = nx.shortest_path(coupling.graph, start, end)
    causes: dict[str, None] = {}
    for a, b in pairwise(path):
        cause = coupling.graph.edges[a, b]["cause"]
        if cause:
            causes[cause] = None
    lines = [f"  by {coupling.calls.get(cause, cause)} (node {cause})" for cause in causes]
    return lines or ["  they are the same axis"]


def _near(name: str, names: Any) -> str:
    return ", ".join(get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.0))
