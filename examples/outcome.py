"""Where examples and benchmarks put what they found: a table on the screen, Markdown and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fxcompress.export import BenchmarkResult

_WIDTH = 160
CONSOLE = Console(width=None if os.isatty(1) else _WIDTH)


def default_data() -> Path:
    """The folder of the data pack: in ``FXCOMPRESS_SHARED``, or beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("FXCOMPRESS_SHARED", beside)) / "data"


def tabled(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table: the first column is words, the others are figures."""
    table = Table(title=title)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    return table


def written(
    table: Table, facts: Mapping[str, Any], path: Path, notes: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Print the table and the notes, and write ``path.md`` and ``path.json``."""
    CONSOLE.print(table)
    for note in notes:
        CONSOLE.print(note, markup=False, highlight=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    page, data = path.with_suffix(".md"), path.with_suffix(".json")
    page.write_text(_markdown(table, notes), encoding="utf-8")
    data.write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")
    CONSOLE.print(f"written to {page} and {data}", highlight=False)
    return page, data


def spelled_ratio(result: BenchmarkResult, name: str) -> str:
    """How many times faster an entry is than the first, with its 95 % interval."""
    if name not in result.speedups:
        return ""
    wall = result.speedups[name].wall
    return f"{wall.value:.2f}x [{wall.low:.2f}, {wall.high:.2f}]"


def spelled_noise(result: BenchmarkResult) -> str:
    """Why not to believe the latencies, for the end of a sentence."""
    return f" (noisy: {'; '.join(result.noise)})" if result.noise else ""


def _markdown(table: Table, notes: Sequence[str]) -> str:
    title, table.title, table.box = table.title, None, box.MARKDOWN
    console = Console(file=StringIO(), width=1000)
    with console.capture() as capture:
        console.print(table)
    lines = [line.strip() for line in capture.get().splitlines() if line.strip()]
    return "\n".join([f"# {title}", "", *lines, "", *(f"- {note}" for note in notes), ""])
