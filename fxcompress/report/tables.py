"""Tables: how they are made, and what they are as plain text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO

from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

WIDTH = 110
"""Columns of text where no terminal says how many there are."""
_PAGE = 1000  # no cell is wrapped in Markdown


def table(title: str, *columns: str) -> Table:
    """An empty table; columns whose name begins with ``>`` are aligned right."""
    made = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        made.add_column(
            column.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right
        )
    return made


def sizes_table(title: str, sizes: Iterable[tuple[str, int, int, float]]) -> Table:
    """A row for each quantity: its name, before, after, and the share that is left."""
    made = table(title, "", ">before", ">after", ">left")
    for name, before, after, left in sizes:
        made.add_row(name, f"{before:,}", f"{after:,}", f"{left:.1%}")
    return made


def rendered(content: RenderableType, width: int = WIDTH) -> str:
    """The content as text without colours or trailing blanks, whatever the terminal."""
    console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(content)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def as_markdown(content: Table) -> str:
    """The table as Markdown, under its title."""
    title, look = content.title, content.box
    content.title, content.box = None, MARKDOWN
    try:
        lines = [line.strip() for line in rendered(content, _PAGE).splitlines() if line.strip()]
    finally:
        content.title, content.box = title, look
    return "\n".join([f"## {title}", "", *lines, ""])
