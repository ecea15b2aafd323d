"""What the units of a group send in a program, beside what they send in another version of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.calibrate.data import require_data, samples_of
from fxcompress.calibrate.moments import Grams, lined
from fxcompress.calibrate.observe import runner
from fxcompress.calibrate.signals import unit_signals
from fxcompress.graph import CapturedModule
from fxcompress.groups import ChannelGroup
from fxcompress.program import Program
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


def paired_moments(
    program: Program,
    other: CapturedModule,
    group: ChannelGroup,
    nodes: Collection[str],
    gram: Grams,
    *,
    who: str = "calibration",
    samples: int | None = None,
) -> dict[str, Paired]:
    """Moments of a group's units at some nodes, of a program and another version of its module.

    Args:
        program: Run in evaluation mode on its task's data.
        other: With the same nodes, by name; tensors that hold the units have the same shapes.
        group: Whose units.
        nodes: Names of nodes that carry them.
        gram: What the matrices are over.
        who: The method that asks, for messages.
        samples: How many samples at most; None for all.

    Returns:
        By the name of the node.

    Raises:
        PlanError: There are no data, or they cannot be read to their end.
    """
    task = require_data(program, who)
    axes = program.analysis.coupling.axes
    kept: list[dict[str, Tensor]] = [{}, {}]

    def keep(place: int) -> Callable[[fx.Node, Any], None]:
        def visit(node: fx.Node, value: Any) -> None:
            if node.name in nodes:
                rows = unit_signals(value, axes[node.name], group.factor, group.over)
                kept[place][node.name] = lined(rows.to(torch.float64), gram)

        return visit

    modules = [runner(program.module, keep(0)), runner(other, keep(1))]
    sums: dict[str, list[Tensor]] = {}
    counts = dict.fromkeys(nodes, 0)
    with torch.no_grad():
        for inputs, _, _ in samples_of(program, who, limit=samples):
            for module in modules:
                call(module, task, inputs)
            for name in nodes:
                h, changed = kept[0].pop(name), kept[1].pop(name)
                parts = [changed @ changed.mT, changed @ h.mT, h.sum(2), changed.sum(2)]
                old = sums.get(name, [torch.zeros_like(part) for part in parts])
                sums[name] = [a + b for a, b in zip(old, parts, strict=True)]
                counts[name] += h.shape[2]
    return {name: _mean(own, counts[name]) for name, own in sums.items()}


def _mean(sums: list[Tensor], count: int) -> Paired:
    gram, cross, mean, other = (part / count for part in sums)
    return Paired(gram, cross, mean, other, count)
