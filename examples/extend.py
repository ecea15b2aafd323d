"""A pass of your own in a few lines, and a rule for an operator of your own.

    python examples/extend.py

The pass removes the channels nearest to all others of their group (FPGM: He et al. 2019, "Filter
Pruning via Geometric Median"). The rule tells the compiler how a custom operator relates the axes
of its operand and its result; without it the operator would freeze the channels that touch it, or
be probed with ``probe=True``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.extend import (
    Axes,
    ChannelGroup,
    RuleContext,
    Structured,
    axis_rule,
    members_of,
    weights_of,
)


@dataclass(frozen=True, kw_only=True, repr=False)
class DistanceToOthers(Structured):
    """Score of a unit: the sum of the distances of its weights to those of all other units."""

    def score(self, program: fx.Program, group: ChannelGroup) -> Tensor:
        """Larger is more important; shape (cells, units)."""
        total = torch.zeros(group.cells, group.units, dtype=torch.float64)
        for site in members_of(group, ["produce"]):
            rows = weights_of(program, group, site)
            total += torch.cdist(rows, rows).sum(2)
        return total


@torch.library.custom_op("example::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    """An operator that fxcompress cannot know."""
    return x / 2


@halve.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@axis_rule("example::halve")
def _halve(ctx: RuleContext, node: torch.fx.Node) -> Axes:
    """Each element alone: the result has the axes of the operand."""
    return ctx.of(node.args[0])


class Net(nn.Module):
    """Two convolutions with the custom operator between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 48, 3)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(halve(torch.relu(self.first(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def main() -> None:
    torch.manual_seed(0)
    half = DistanceToOthers(ratio=0.5)
    program = fx.compile(Net(), (torch.randn(2, 3, 12, 12),), passes=[half])
    print(program)
    widths = {group.name: group.units.after for group in program.report.groups}
    assert widths == {"first": 16, "second": 24}, widths
    assert program.report.verification is not None
    assert program.report.verification.ok


if __name__ == "__main__":
    main()
