"""Why axes move together, in words."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import networkx as nx

from fxcompress.axes import Factor, leaves
from fxcompress.coupling import Coupling
from fxcompress.errors import PlanError
from fxcompress.groups import ChannelGroup


def explain_groups(groups: Sequence[ChannelGroup], pattern: str) -> str:
    """The groups that hold a parameter of this name, or that are called so."""
    return "\n".join(group.explain() for group in matching_groups(groups, pattern))


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


def explain_path(coupling: Coupling, first: str, second: str) -> str:
    """The shortest chain of operations that ties an axis of one parameter to an axis of another.

    Raises:
        PlanError: There is no parameter of that name.
    """
    _require(coupling, first, second)
    shared = _shared(coupling, first, second)
    if not shared:
        return f"{first} and {second} share no units: they do not move together"
    lines: list[str] = []
    for (dim, other), factors in shared.items():
        names = ", ".join(f"{factor.size} units" for factor in factors)
        lines.append(f"axis {dim} of {first} and axis {other} of {second} share {names}:")
        lines += [f"  {line}" for line in _chain(coupling, (first, dim), (second, other))]
    return "\n".join(lines)


def _shared(coupling: Coupling, first: str, second: str) -> dict[tuple[int, int], list[Factor]]:
    shared: dict[tuple[int, int], list[Factor]] = {}
    for dim, expr in enumerate(coupling.parameters[first]):
        for other, target in enumerate(coupling.parameters[second]):
            common = [leaf for leaf in dict.fromkeys(leaves(expr)) if leaf in set(leaves(target))]
            if common and (first, dim) != (second, other):
                shared[dim, other] = common
    return shared


def _chain(coupling: Coupling, start: tuple[str, int], end: tuple[str, int]) -> list[str]:
    path: list[Any] = nx.shortest_path(coupling.graph, start, end)
    causes: dict[str, None] = {}
    for a, b in pairwise(path):
        cause = coupling.graph.edges[a, b]["cause"]
        if cause:
            causes[cause] = None
    lines = [f"by {coupling.calls.get(cause, cause)} (node {cause})" for cause in causes]
    return lines or ["they are the same axis"]


def _near(name: str, names: Any) -> str:
    return ", ".join(get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.0))
