"""What a layer reads: the value of a node and, for a convolution, what lies under its kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxcompress.arguments import Checked, checked
from fxcompress.axes.expressions import Axes, Factor
from fxcompress.errors import PlanError
from fxcompress.graph.window import Window
from fxcompress.layers.signals import unit_signals
from fxcompress.rules import linear

__all__ = ["Read", "Window", "window_of"]

ENTRIES = 2**24
"""How many signals are held at once where every tap of a kernel has its own."""


@dataclass(frozen=True)
class Read(Checked):
    """The value of a node as a layer reads it.

    Attributes:
        value: The node's name.
        window: Where each tap of a kernel is an input of its own; None where a layer reads
            positions one by one, or all taps are taken together.
    """

    value: str
    window: Window | None = None

    @property
    def taps(self) -> int:
        """How many inputs of the layer each position is."""
        return 1 if self.window is None else self.window.taps

    def signals(
        self, value: Tensor, axes: Axes, factor: Factor, over: Sequence[Factor] = ()
    ) -> Iterator[Tensor]:
        """Parts of a batch by unit, shape (cells, units, positions·taps, samples).

        Positions and samples are those of `unit_signals`.

        Args:
            value: Of the node, one batch.
            axes: What the analysis says of it.
            factor: The group's.
            over: The factors that number the group's cells.
        """
        if self.window is None:
            yield unit_signals(value, axes, factor, over)
            return
        whole = value.dim() == len(self.window.kernel) + 1  # a map alone, without a batch
        each = value.numel() // (1 if whole else len(value)) * self.taps
        for part in (value,) if whole else value.split(max(1, ENTRIES // each)):
            views = [unit_signals(view, axes, factor, over) for view in self.window.views(part)]
            yield torch.stack(views, 3).flatten(2, 3)


@checked(PlanError)
def window_of(node: fx.Node) -> Window | None:
    """The window of a convolution; None for any other layer."""
    return linear.window_of(node)
