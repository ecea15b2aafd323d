"""Where examples and benchmarks put what they found: a table on the screen, Markdown and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fxcompress.export import BenchmarkResult
from fxcompress.files.write import write_text
from fxcompress.report.tables import as_markdown, table

_WIDTH = 160
CONSOLE = Console(width=None if os.isatty(1) else _WIDTH)


def default_data() -> Path:
    """The folder of the data pack: in ``FXCOMPRESS_SHARED``, or beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("FXCOMPRESS_SHARED", beside)) / "data"


def tabled(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table: the first column is words, the others are figures."""
    first, *figures = columns
    made = table(title, first, *(f">{column}" for column in figures))
    for row in rows:
        made.add_row(*("" if cell is None else str(cell) for cell in row))
    return made


def written(
    tables: Sequence[Table], facts: Mapping[str, Any], path: Path, notes: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Print the tables and the notes, and write ``path.md`` and ``path.json``."""
    for each in tables:
        CONSOLE.print(each)
    for note in notes:
        CONSOLE.print(note, markup=False, highlight=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    page, data = path.with_suffix(".md"), path.with_suffix(".json")
    write_text(page, "\n".join([*map(as_markdown, tables), *(f"- {note}" for note in notes), ""]))
    write_text(data, json.dumps(facts, indent=1, default=str) + "\n")
    CONSOLE.print(f"written to {page} and {data}", highlight=False)
    return page, data


def medians(result: BenchmarkResult, name: str) -> dict[str, Any]:
    """An entry's latency and CPU time, and how many times less CPU time that is than the first's.

    CPU time and not latency: on a busy machine it is the one that can be believed.
    """
    timing = next(timing for timing in result.timings if timing.name == name)
    gain = result.speedups[name].cpu if name in result.speedups else None
    return {
        "wall_ms": timing.wall.p50,
        "cpu_ms": timing.cpu.p50,
        "speedup": f"{gain.value:.2f}x [{gain.low:.2f}, {gain.high:.2f}]" if gain else "",
    }


def spelled_noise(result: BenchmarkResult) -> str:
    """Why not to believe the latencies, for the end of a sentence."""
    return f" (noisy: {'; '.join(result.noise)})" if result.noise else ""
