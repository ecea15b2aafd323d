"""Pictures of what moves together: one group with its layers and ops, or how groups hang together.

`draw_groups` follows the units of a group through the graph: every layer that holds them is a box,
every op where several flows meet, or where they end, is an ellipse. `draw_overview` has a box for
each group and an arrow for each layer that reads one and writes another.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import networkx as nx

from fxcompress.analysis.coupling import Coupling
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.errors import PlanError
from fxcompress.explain.flow import flow
from fxcompress.explain.layout import place
from fxcompress.explain.overview import LEFT_OUT, overview
from fxcompress.explain.picture import Panel, write_picture
from fxcompress.graph.captured import CapturedModule

__all__ = ["draw_groups", "draw_overview"]

MOST = 12
"""Groups in one picture; more are no picture any more."""


def draw_groups(
    module: CapturedModule,
    coupling: Coupling,
    groups: Sequence[ChannelGroup],
    path: str | Path,
    marked: Collection[str] = (),
) -> Path:
    """Draw groups one below the other: their layers in the order of the graph, top to bottom.

    Args:
        module: What was analysed.
        coupling: The analysis.
        groups: The groups, at most 12.
        path: A file whose ending tells the format: ``.svg``, ``.png``, ``.pdf``.
        marked: Parameters whose layers get a thick frame.

    Raises:
        PlanError: There are no groups, or too many, or nothing can write the format.
    """
    if not groups:
        raise PlanError("no group to draw: these parameters share no units")
    if len(groups) > MOST:
        names = ", ".join(group.name for group in groups[:5])
        raise PlanError(f"{len(groups)} groups are too many ({names} …); name at most {MOST}")
    panels = []
    for group in groups:
        graph = flow(module, coupling, group, marked)
        panels.append(Panel(_title(group), place(graph)))
    return write_picture(panels, Path(path))


def draw_overview(groups: Sequence[ChannelGroup], title: str, path: str | Path) -> Path:
    """Draw all groups, and which layers read one and write another.

    Groups that are alike and hang on the very same others share a box. Where there are too many
    arrows to see anything, those that others imply are left out, and the title says so.

    Args:
        groups: All groups.
        title: Stands above.
        path: A file whose ending tells the format: ``.svg``, ``.png``, ``.pdf``.
    """
    graph: nx.DiGraph[str] = overview(groups)
    left_out = graph.graph[LEFT_OUT]
    words = f"; {left_out} arrows that others imply are not shown" if left_out else ""
    heading = (title, f"{len(groups)} groups{words}")
    return write_picture([Panel(heading, place(graph))], Path(path))


def _title(group: ChannelGroup) -> tuple[str, ...]:
    cells = f" in each of {group.cells} cells" if group.cells > 1 else ""
    lines = [f"{group.name}: {group.units} units ({group.kind}){cells}"]
    if group.frozen:
        lines.append(f"may not shrink: {group.frozen}")
    lines += [f"not exact under zero-masking: {words}" for words in group.inexact[:1]]
    return tuple(lines)
