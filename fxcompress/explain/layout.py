"""Layers of a drawing: rows by longest way, order by barycentres, places without overlap.

After Sugiyama, Tagawa and Toda 1981, "Methods for Visual Understanding of Hierarchical System
Structures". Lengths are inches; y grows downwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import networkx as nx
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

FONT = 8.0
"""Points."""
GAP, ROW, WIDEST = 0.3, 0.72, 11.0
_SWEEPS = 12
_LANE = 0.12  # what an arrow that passes a row takes of it

Point = tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """A graph with the place of every vertex and the bends of every edge.

    Attributes:
        graph: As given.
        centers: The middle of each vertex.
        widths: The width of each vertex.
        bends: The points that each edge passes, from the first vertex to the second.
        size: The width of everything; the height from the middle of the first row to that of the
            last.
    """

    graph: nx.DiGraph[str]
    centers: Mapping[str, Point]
    widths: Mapping[str, float]
    bends: Mapping[tuple[str, str], tuple[Point, ...]]
    size: Point


def place(graph: nx.DiGraph[str]) -> Drawing:
    """Find a place for every vertex; edges go down, those that close a cycle go up."""
    widths = {v: text_width(data["lines"]) + 0.22 for v, data in graph.nodes(data=True)}
    levels = _folded(_levels(graph), widths)
    wide, chains = _subdivided(graph, levels)
    rows = _ordered(wide)
    x = _spread(wide, rows, {v: widths.get(v, _LANE) for v in wide})
    left = min((x[v] - widths.get(v, _LANE) / 2 for v in wide), default=0.0)
    points = {v: (x[v] - left, ROW * data["level"]) for v, data in wide.nodes(data=True)}
    right = max((points[v][0] + widths.get(v, _LANE) / 2 for v in wide), default=0.0)
    bends = {edge: tuple(points[v] for v in chain) for edge, chain in chains.items()}
    size = right, ROW * max(levels.values(), default=0)
    return Drawing(graph, {v: points[v] for v in graph}, widths, bends, size)


def text_width(lines: Iterable[str], size: float = FONT) -> float:
    """The width of the longest line, in inches."""
    font = FontProperties(size=size)
    measure = text_to_path.get_text_width_height_descent
    return max((measure(line, font, ismath=False)[0] for line in lines), default=0.0) / 72


def _levels(graph: nx.DiGraph[str]) -> dict[str, int]:
    """The row of each vertex: one more than the lowest before it, cycles cut where they close."""
    order = {vertex: number for number, vertex in enumerate(graph)}
    down = nx.DiGraph((a, b) for a, b in graph.edges if order[a] < order[b])
    down.add_nodes_from(graph)
    rows = list(nx.topological_generations(down))
    levels = {vertex: level for level, row in enumerate(rows) for vertex in row}
    for vertex in (vertex for row in reversed(rows) for vertex in row):
        below = [levels[after] for after in down[vertex]]
        if below and len(below) >= down.in_degree(vertex):
            levels[vertex] = min(below) - 1  # near what it flows into: shorter arrows
    return levels


def _folded(levels: Mapping[str, int], widths: Mapping[str, float]) -> dict[str, int]:
    """Rows that are too wide broken into several, each close to as wide as the others."""
    folded: dict[str, int] = {}
    start = 0
    for level in sorted(set(levels.values())):
        row = [vertex for vertex, own in levels.items() if own == level]
        total = sum(widths[vertex] + GAP for vertex in row)
        share = total / ceil(total / WIDEST)
        reached = 0.0
        for vertex in row:
            middle = reached + (widths[vertex] + GAP) / 2
            folded[vertex] = start + int(middle / share)
            reached += widths[vertex] + GAP
        start = max(folded.values()) + 1
    return folded


def _subdivided(
    graph: nx.DiGraph[str], levels: Mapping[str, int]
) -> tuple[nx.DiGraph[Any], dict[tuple[str, str], list[Any]]]:
    """The graph with a vertex in every row that an edge passes, and the chain of each edge."""
    wide: nx.DiGraph[Any] = nx.DiGraph()
    for vertex in graph:
        wide.add_node(vertex, level=levels[vertex])
    chains: dict[tuple[str, str], list[Any]] = {}
    for a, b in graph.edges:
        step = 1 if levels[a] < levels[b] else -1
        passed: list[Any] = [(a, b, level) for level in range(levels[a] + step, levels[b], step)]
        for _, _, level in passed:
            wide.add_node((a, b, level), level=level)
        chains[a, b] = [a, *passed, b]
        nx.add_path(wide, chains[a, b])
    return wide, chains


def _ordered(wide: nx.DiGraph[Any]) -> list[list[Any]]:
    """The vertices of each row from left to right, with few crossings."""
    rows: dict[int, list[Any]] = {}
    for vertex, data in wide.nodes(data=True):
        rows.setdefault(data["level"], []).append(vertex)
    ordered = [rows[level] for level in sorted(rows)]
    both = wide.to_undirected(as_view=True)
    for sweep in range(_SWEEPS):
        position = {v: i / max(1, len(row) - 1) for row in ordered for i, v in enumerate(row)}
        for row in ordered if sweep % 2 else reversed(ordered):
            middle = {v: _mean([position[n] for n in both[v]], position[v]) for v in row}
            row.sort(key=middle.__getitem__)
            position.update({v: i / max(1, len(row) - 1) for i, v in enumerate(row)})
    return ordered


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _spread(
    wide: nx.DiGraph[Any], rows: list[list[Any]], widths: Mapping[Any, float]
) -> dict[Any, float]:
    """Places near those of the neighbours, in the order given and without overlap."""
    x: dict[Any, float] = {}
    for row in rows:
        x.update(_apart(row, dict.fromkeys(row, 0.0), widths))
    both = wide.to_undirected(as_view=True)
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 else reversed(rows):
            wanted = {v: _mean([x[n] for n in both[v]], x[v]) for v in row}
            x.update(_apart(row, wanted, widths))
    return x


def _apart(
    row: list[Any], wanted: Mapping[Any, float], widths: Mapping[Any, float]
) -> dict[Any, float]:
    """The wanted places, moved apart: blocks that touch lie around the mean of what they want."""
    blocks: list[tuple[float, float, list[tuple[Any, float]]]] = []  # (center, half, members)
    for vertex in row:
        half = (widths[vertex] + GAP) / 2
        block = (wanted[vertex], half, [(vertex, 0.0)])
        while blocks and blocks[-1][0] + blocks[-1][1] > block[0] - block[1]:
            block = _joined(blocks.pop(), block)
        blocks.append(block)
    return {v: center + offset for center, _, members in blocks for v, offset in members}


def _joined(
    left: tuple[float, float, list[tuple[Any, float]]],
    right: tuple[float, float, list[tuple[Any, float]]],
) -> tuple[float, float, list[tuple[Any, float]]]:
    half = left[1] + right[1]
    members = [
        *((v, offset - right[1]) for v, offset in left[2]),
        *((v, offset + left[1]) for v, offset in right[2]),
    ]
    shares = len(left[2]), len(right[2])
    # Each block wants its own center: the mean of the two, by the number of members.
    center = (shares[0] * (left[0] + right[1]) + shares[1] * (right[0] - left[1])) / sum(shares)
    return center, half, members
