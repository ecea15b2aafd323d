"""What the tables of methods have in common: points that a stopped run goes on from, tables with
the best figure in bold, a page that says how it was made, and curves.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fxcompress.export.timing.machine import this_machine
from fxcompress.files.write import write_text, written

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
Figures = Mapping[str, Any]
Curves = Mapping[str, Sequence[tuple[float, float]]]
"""For each method its points, x and y."""


def shared(folder: str) -> Path:
    """A folder of the shared data: in ``FXCOMPRESS_SHARED``, or beside the repository."""
    found = Path(os.environ.get("FXCOMPRESS_SHARED", HERE.parents[1] / "shared")) / folder
    if not found.is_dir():
        raise SystemExit(f"no {found}; set FXCOMPRESS_SHARED to the folder that holds {folder}")
    return found


class Points:
    """Figures by key in a file of JSON lines; the last line of a key counts."""

    def __init__(self, path: Path, fresh: bool = False) -> None:
        """Read what was measured before, or with `fresh` forget it."""
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        if fresh:
            path.unlink(missing_ok=True)
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                self.known[_name(record["key"])] = record

    def get(self, **key: Any) -> dict[str, Any] | None:
        """The figures of a key, or None where it was not measured."""
        return self.known.get(_name(key))

    def measure(self, work: Callable[[], Figures], **key: Any) -> dict[str, Any]:
        """The figures of a key; `work` is done where they are not known, and told in a line.

        An error that `work` raises is a result: ``failed`` holds its first line.
        """
        if (known := self.get(**key)) is not None:
            return known
        start = time.process_time()
        try:
            figures = dict(work())
        except Exception as error:
            figures = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
        seconds = round(time.process_time() - start, 2)
        record = {"key": key, **figures, "cpu_seconds": seconds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.known[_name(key)] = record
        told = ", ".join(f"{name} {_told(value)}" for name, value in figures.items())
        print(f"{' '.join(map(str, key.values()))}: {told} ({seconds} s)", flush=True)
        return record


def _name(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(
    rows: Mapping[str, Sequence[float | str | None]],
    columns: Sequence[str],
    *,
    corner: str = "",
    digits: int = 4,
    better: Callable[[float, float], float] | None = max,
) -> str:
    """A Markdown table; the best number of every column is bold.

    Args:
        rows: For each name its cells; None for what was not measured.
        columns: Their names.
        corner: What the first column is called.
        digits: After the point.
        better: `max` or `min`; None for no bold.
    """
    best = [_best(cells, digits, better) for cells in zip(*rows.values(), strict=True)]
    lines = [f"| {corner} | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name, cells in rows.items():
        words = [_cell(cell, top, digits) for cell, top in zip(cells, best, strict=True)]
        lines.append(f"| {name} | {' | '.join(words)} |")
    return "\n".join(lines)


def _best(cells: Sequence[Any], digits: int, better: Any) -> str | None:
    numbers = [c for c in cells if isinstance(c, (int, float)) and math.isfinite(c)]
    return f"{better(numbers):.{digits}f}" if numbers and better else None


def _cell(value: float | str | None, best: str | None, digits: int) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    words = f"{value:.{digits}f}"
    return f"**{words}**" if words == best else words


def page(path: Path, title: str, words: str, sections: Mapping[str, str]) -> None:
    """Write a Markdown page: what was measured, the tables, and the command that made them."""
    machine = this_machine()
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    parts = [f"# {title}", words]
    parts += [f"## {name}\n\n{body}" for name, body in sections.items()]
    parts.append(f"Made by `{command}` on {machine.cpu} ({machine.cores} cores), {versions}.")
    write_text(path, "\n\n".join(parts) + "\n")
    print(f"written to {path}")


def plot(
    path: Path,
    panels: Mapping[str, Curves],
    *,
    x: str,
    y: str,
    log: bool = False,
) -> None:
    """Draw one panel beside another, every method in the same colour in all of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    width, height = 5.2 * len(panels) + 2.2, max(4.4, 0.2 * len(names) + 0.4)  # of the legend
    figure, axes = pyplot.subplots(1, len(panels), figsize=(width, height), squeeze=False)
    colours = pyplot.get_cmap("tab20")
    for panel, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for name, points in curves.items():
            number = names.index(name)
            marker = "os^Dv"[number // 20 % 5]
            panel.plot(*zip(*points, strict=True), marker=marker, markersize=3.5, linewidth=1.3,
                       color=colours(number % 20), label=name)  # fmt: skip
        panel.set(title=title, xlabel=x, ylabel=y, yscale="log" if log else "linear")
        panel.grid(alpha=0.3)
    handles = {h.get_label(): h for panel in axes[0] for h in panel.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="center left",
                  bbox_to_anchor=(1 - 2.1 / width, 0.5), fontsize=8, frameon=False)  # fmt: skip
    figure.tight_layout(rect=(0, 0, 1 - 2.2 / width, 1))
    with written(path) as draft:
        figure.savefig(draft, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
