"""What the units of a group send in a program, beside what they send in another version of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Count, checked
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.state import forked
from fxcompress.layers.inputs import Read
from fxcompress.program import Program
from fxcompress.stats.cross import Cross, Pair
from fxcompress.stats.data import require_data, samples_of
from fxcompress.stats.moments import Grams, aligned
from fxcompress.stats.observe import check_nodes
from fxcompress.stats.powers import products
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
    kept: list[dict[str, Tensor]] = [{}, {}]

    names = {read.value for read in reads}
    check_nodes(program, names, f"{who}: reads")

    def keep(place: int) -> Callable[[fx.Node, Any], None]:
        def visit(node: fx.Node, value: Any) -> None:
            if node.name in names:
                kept[place][node.name] = value.clone()

        return visit

    modules = [runner(program.module, keep(0)), runner(other, keep(1))]
    sums = {read: UnitPairs(program, group, read, gram) for read in reads}
    with torch.no_grad(), forked(program.module):
        for inputs, _, _ in samples_of(program, who, limit=samples):
            for module in modules:
                with forked(module):
                    call(module, task, inputs)
            for read, one in sums.items():
                one.update((kept[0][read.value], kept[1][read.value]))
            for held in kept:
                held.clear()
    return {read: one.means for read, one in sums.items()}


class UnitPairs(Cross):
    """Moments of a group's units as one layer reads them, in a program and another version of it.

    A batch is the value of the node that is read in the program, and in the other.
    """

    def __init__(self, program: Program, group: ChannelGroup, read: Read, gram: Grams) -> None:
        super().__init__()
        self.read, self.group, self.kind = read, group, gram
        self.axes = program.analysis.coupling.axes[read.value]

    def update(self, batch: Pair) -> None:
        both = [
            self.read.signals(each, self.axes, self.group.factor, self.group.over) for each in batch
        ]
        for pair in zip(*both, strict=True):
            before, after = (products(aligned(signals, self.kind)) for signals in pair)
            super().update((before, after))

    @property
    def means(self) -> Paired:
        """The means."""
        own = {name: total / self.count for name, total in self.sums.items()}
        return Paired(**own, count=self.count)
