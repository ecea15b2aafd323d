"""Rich tables as plain text."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.table import Table

_WIDTH = 120


def rendered(table: Table) -> str:
    """The table as text without colours or trailing blanks, whatever the terminal."""
    console = Console(file=StringIO(), width=_WIDTH, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
