"""What the tables of several commands have in common."""

from __future__ import annotations

from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.analysis.cost import Cost
from fxcompress.program import Program


def table(title: str, *columns: str) -> Table:
    """An empty table; columns whose name begins with ``>`` are aligned right."""
    made = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        made.add_column(
            column.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right
        )
    return made


def count(number: int, noun: str) -> str:
    """``1 group``, ``2 groups``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shapes(program: Program) -> str:
    """The shapes of the example inputs, which the costs are for."""
    leaves = pytree.tree_leaves((program.args, dict(program.kwargs)))
    sizes = ["x".join(map(str, leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor)]
    return f"inputs {', '.join(sizes)}"


def cost_of(cost: Cost) -> dict[str, int]:
    """A cost for JSON."""
    return {**asdict(cost), "macs": cost.macs}


def cost_table(before: Cost, after: Cost, title: str) -> Table:
    """Costs before and after, and the share that stays."""
    made = table(title, "", ">before", ">after", ">left")
    names = {"params": "parameters", "flops": "FLOPs", "macs": "MACs", "bytes": "bytes"}
    shares = after.share(before)
    for field, name in names.items():
        old, new = getattr(before, field), getattr(after, field)
        made.add_row(name, f"{old:,}", f"{new:,}", f"{shares[field]:.1%}")
    return made
