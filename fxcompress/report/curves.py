"""Curves with names, as plain data that draws itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxcompress.arguments import FilePath, checked
from fxcompress.errors import PlanError
from fxcompress.files.figures import write_figure

Line = tuple[tuple[float, ...], tuple[float, ...]]
_LEGEND = 12


@dataclass(frozen=True)
class Curves:
    """One curve a group.

    Attributes:
        x: What the horizontal axis is.
        y: What the vertical axis is.
        lines: For each name, the places along the horizontal axis and the values there.
        marks: For some names, the place that was chosen.
    """

    x: str
    y: str
    lines: Mapping[str, Line]
    marks: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The curves as dictionaries, lists, strings and numbers."""
        lines = {name: {"x": list(x), "y": list(y)} for name, (x, y) in self.lines.items()}
        return {"x": self.x, "y": self.y, "lines": lines, "marks": dict(self.marks)}

    @checked(PlanError)
    def plot(self, path: FilePath) -> Path:
        """Draw all curves into one picture (PNG, SVG, PDF: by the suffix); give the path back."""
        # A figure of its own: pyplot would choose a window system. Imported where it is used.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for name, (x, y) in self.lines.items():
            (line,) = axes.plot(x, y, label=name.replace("$", r"\$"), marker=".", linewidth=1)
            if name in self.marks:
                at = min(range(len(x)), key=lambda n: abs(x[n] - self.marks[name]))
                axes.plot(x[at], y[at], marker="o", color=line.get_color())
        axes.set_xlabel(self.x)
        axes.set_ylabel(self.y)
        if 0 < len(self.lines) <= _LEGEND:
            axes.legend(frameon=False, fontsize=8)
        return write_figure(figure, path)
