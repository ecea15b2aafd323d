"""Drawings as a file: boxes, ellipses, arrows and a legend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path as Curve

from fxcompress.explain.layout import FONT, Drawing, Point, text_width
from fxcompress.files.figures import write_figure

COLORS = {
    "produce": "#bcd7f0",
    "table": "#d9c9ec",
    "contract": "#fbd7a8",
    "affine": "#cfe8c5",
    "statistic": "#cfe8c5",
    "group": "#bcd7f0",
    "frozen": "#dddddd",
    "op": "#ffffff",
}
LEGEND = {
    "produce": "writes the units",
    "table": "looks them up",
    "affine": "scales or shifts them",
    "contract": "reads them",
    "op": "an op where they meet or end",
    "group": "may shrink",
    "frozen": "may not shrink",
}
HALF = 0.19
"""Half the height of a vertex, in inches."""
MARGIN, LINE, NARROWEST = 0.25, 0.2, 4.5


@dataclass(frozen=True)
class Panel:
    """One drawing with its title."""

    title: tuple[str, ...]
    drawing: Drawing


def write_picture(panels: Sequence[Panel], path: Path) -> Path:
    """Write the panels one below the other; the ending of the path tells the format.

    Raises:
        PlanError: Nothing here writes that format.
        WriteError: The file cannot be written; what was there is as it was.
    """
    vertices = [data for panel in panels for _, data in panel.drawing.graph.nodes(data=True)]
    kinds = {str(data["kind"]) for data in vertices}
    legend = {kind: LEGEND[kind] for kind in LEGEND if kind in kinds}
    widths = [*(p.drawing.size[0] for p in panels), *(text_width(p.title, 10) for p in panels)]
    width = max(NARROWEST, text_width(["    ".join(legend.values())]) + 0.4 * len(legend), *widths)
    height = sum(_height(panel) for panel in panels) + 2 * LINE
    figure = Figure(figsize=(width + 2 * MARGIN, height + 2 * MARGIN))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-MARGIN, width + MARGIN), ylim=(height + MARGIN, -MARGIN))
    axes.set_axis_off()
    top = 0.0
    for panel in panels:
        _draw_panel(axes, panel, top, width)
        top += _height(panel)
    _draw_legend(axes, legend)
    return write_figure(figure, path, dpi=150)


def _height(panel: Panel) -> float:
    return panel.drawing.size[1] + LINE * len(panel.title) + 4 * HALF + LINE


def _draw_panel(axes: Axes, panel: Panel, top: float, width: float) -> None:
    for number, line in enumerate(panel.title):
        weight = "normal" if number else "bold"
        axes.text(0, top + LINE * number, line, fontsize=10, va="center", weight=weight)
    drawing = panel.drawing
    shift = (width - drawing.size[0]) / 2, top + LINE * len(panel.title) + 2 * HALF
    for (a, b), bends in drawing.bends.items():
        points = [(x + shift[0], y + shift[1]) for x, y in bends]
        _draw_edge(axes, points, drawing.graph, (a, b))
    for vertex, (x, y) in drawing.centers.items():
        center = x + shift[0], y + shift[1]
        data = drawing.graph.nodes[vertex]
        _draw_vertex(axes, center, drawing.widths[vertex], data)


def _draw_vertex(axes: Axes, center: Point, width: float, data: dict[str, object]) -> None:
    (x, y), kind = center, str(data["kind"])
    line = 2.2 if data["marked"] else 0.7
    shape: Patch
    if kind == "op":
        shape = Ellipse(center, width + 0.14, 1.5 * HALF, fc=COLORS[kind], ec="black", lw=line)
    else:
        corner = x - width / 2, y - HALF
        style = "round,pad=0,rounding_size=0.06"
        shape = FancyBboxPatch(
            corner, width, 2 * HALF, boxstyle=style, fc=COLORS[kind], ec="black", lw=line
        )
    axes.add_patch(shape)
    shape.set_zorder(2)
    lines = data["lines"]
    assert isinstance(lines, tuple)
    axes.text(x, y, "\n".join(lines), fontsize=FONT, ha="center", va="center", zorder=3)


def _draw_edge(
    axes: Axes, points: list[Point], graph: nx.DiGraph[str], edge: tuple[str, str]
) -> None:
    data = graph.edges[edge]
    sign = 1 if points[-1][1] > points[0][1] else -1
    start, end = (sign * (0.75 if graph.nodes[v]["kind"] == "op" else 1) * HALF for v in edge)
    points[0] = points[0][0], points[0][1] + start
    points[-1] = points[-1][0], points[-1][1] - end
    points = [points[0], *_upright(points[1:-1], sign), points[-1]]
    back = bool(data.get("back"))
    style = "<|-|>" if data.get("both") else "<|-" if back else "-|>"
    arrow = FancyArrowPatch(
        path=_curve(points), arrowstyle=style, mutation_scale=8, lw=0.8, color="#555555", zorder=1
    )
    axes.add_patch(arrow)
    label = str(data.get("label", ""))
    if label:
        fans_out = graph.out_degree(edge[0]) >= graph.in_degree(edge[1])
        middle = _along(points[-2:], 0.7) if fans_out else _along(points[:2], 0.3)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
        axes.text(*middle, label, fontsize=6, ha="center", va="center", color="#333333", bbox=box)


def _upright(points: Sequence[Point], sign: int) -> list[Point]:
    """Straight through the rows that an arrow passes, so that it bends only between them."""
    return [(x, y + way * sign * HALF) for x, y in points for way in (-1, 1)]


def _along(points: Sequence[Point], share: float) -> Point:
    """A point of the arc between two points."""
    (x0, y0), (x1, y1) = points
    middle, rest = (y0 + y1) / 2, 1 - share
    near = rest**3 + 3 * rest**2 * share
    y = rest**3 * y0 + 3 * rest * share * middle + share**3 * y1
    return near * x0 + (1 - near) * x1, y


def _curve(points: Sequence[Point]) -> Curve:
    """Through all points, leaving and arriving upright."""
    vertices, codes = [points[0]], [Curve.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        vertices += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Curve.CURVE4] * 3
    return Curve(vertices, codes)


def _draw_legend(axes: Axes, legend: dict[str, str]) -> None:
    bottom = axes.get_ylim()[0] - MARGIN
    for x, (kind, words) in zip(_starts(legend), legend.items(), strict=True):
        patch = FancyBboxPatch(
            (x, bottom - 0.07), 0.14, 0.14, boxstyle="round,pad=0,rounding_size=0.03",
            fc=COLORS[kind], ec="black", lw=0.7,
        )  # fmt: skip
        axes.add_patch(patch)
        axes.text(x + 0.22, bottom, words, fontsize=FONT, va="center")


def _starts(legend: dict[str, str]) -> Iterator[float]:
    x = 0.0
    for words in legend.values():
        yield x
        x += text_width([words]) + 0.45
