"""What the units of a group send in a program, beside what they send in another version of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Count, checked
from fxcompress.axes.expressions import Axes
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.state import forked
from fxcompress.layers.inputs import Read
from fxcompress.program import Program
from fxcompress.stats.data import require_data, samples_of
from fxcompress.stats.moments import Grams, aligned, products
from fxcompress.stats.observe import check_nodes
from fxcompress.stats.running import runner
from fxcompress.train.batches import call


@dataclass(frozen=True)
class Paired:
    """Moments of signals h in a program and h' in another version of it, on the same data.

    Attributes:
        gram: E[h' h'ᵀ], float64, shape (blocks, n, n) as in `Moments`.
        cross: E[h' hᵀ], of the same shape.
        mean: E[h], shape (blocks, n).
        other: E[h'], of the same shape.
        count: Over how many samples.
    """

    gram: Tensor
    cross: Tensor
    mean: Tensor
    other: Tensor
    count: int


@checked(PlanError)
def paired_moments(
    program: Program,
    other: CapturedModule,
    group: ChannelGroup,
    reads: Collection[Read],
    gram: Grams,
    *,
    who: str = "calibration",
    samples: Count | None = None,
) -> dict[Read, Paired]:
    """Moments of a group's units where they are read, in a program and another version of it.

    Args:
        program: Run in evaluation mode on its task's data.
        other: With the same nodes, by name; tensors that hold the units have the same shapes.
        group: Whose units.
        reads: What carries them.
        gram: What the matrices are over.
        who: The method that asks, for messages.
        samples: How many samples at most; None for all.

    Returns:
        By what is read.

    Raises:
        PlanError: There are no data, or they cannot be read to their end.
    """
    task = require_data(program, who)
    axes = program.analysis.coupling.axes
    kept: list[dict[str, Tensor]] = [{}, {}]

    names = {read.value for read in reads}
    check_nodes(program, names, f"{who}: reads")

    def keep(place: int) -> Callable[[fx.Node, Any], None]:
        def visit(node: fx.Node, value: Any) -> None:
            if node.name in names:
                kept[place][node.name] = value.clone()

        return visit

    modules = [runner(program.module, keep(0)), runner(other, keep(1))]
    sums = {read: _Sum(read, axes[read.value], group, gram) for read in reads}
    with torch.no_grad(), forked(program.module):
        for inputs, _, _ in samples_of(program, who, limit=samples):
            for module in modules:
                with forked(module):
                    call(module, task, inputs)
            for read, one in sums.items():
                one.add(kept[0][read.value], kept[1][read.value])
            for held in kept:
                held.clear()
    return {read: one.mean for read, one in sums.items()}


class _Sum:
    """Running sums over what one layer reads in both."""

    def __init__(self, read: Read, axes: Axes, group: ChannelGroup, gram: Grams) -> None:
        self.read, self.axes, self.group, self.kind = read, axes, group, gram
        self.count, self.parts = 0, [torch.zeros(())] * 4

    def add(self, value: Tensor, other: Tensor) -> None:
        both = [
            self.read.signals(each, self.axes, self.group.factor, self.group.over)
            for each in (value, other)
        ]
        for pair in zip(*both, strict=True):
            h, changed = (products(aligned(signals, self.kind)) for signals in pair)
            new = (changed @ changed.mT, changed @ h.mT, h.sum(2), changed.sum(2))
            self.parts = [a + b.to(torch.float64) for a, b in zip(self.parts, new, strict=True)]
            self.count += h.shape[2]

    @property
    def mean(self) -> Paired:
        """The means."""
        gram, cross, mean, other = (part / self.count for part in self.parts)
        return Paired(gram, cross, mean, other, self.count)
