"""What the tables of several commands have in common."""

from __future__ import annotations

from rich.table import Table
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.analysis.cost import Cost
from fxcompress.analysis.quantities import quantities
from fxcompress.program import Program
from fxcompress.report.tables import sizes_table


def count(number: int, noun: str) -> str:
    """``1 group``, ``2 groups``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shapes(program: Program) -> str:
    """The shapes of the example inputs, which the costs are for."""
    leaves = pytree.tree_leaves((program.args, dict(program.kwargs)))
    sizes = ["x".join(map(str, leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor)]
    return f"inputs {', '.join(sizes)}"


def cost_table(before: Cost, after: Cost, title: str) -> Table:
    """Costs before and after, and the share that stays."""
    shares, known = after.share(before), quantities()
    return sizes_table(
        title,
        (
            (known[name].title, old, after[name], shares[name])
            for name, old in before.amounts.items()
        ),
    )
