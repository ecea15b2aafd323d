"""What a layer reads: the value of a node and, for a convolution, what lies under its kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F  # noqa: N812

from fxcompress.arguments import Checked, checked
from fxcompress.axes.expressions import Axes, Factor
from fxcompress.canonicalize.norms import CONVOLUTIONS
from fxcompress.errors import PlanError
from fxcompress.graph.schema import arguments, packet_of, per_axis
from fxcompress.layers.signals import unit_signals

ENTRIES = 2**24
"""How many signals are held at once where every tap of a kernel has its own."""


@dataclass(frozen=True)
class Window:
    """The positions that a kernel covers, as it moves over a map.

    Attributes:
        kernel: Its extent along each axis of positions, the last axes of the map.
        stride: How far it moves.
        dilation: How far its taps are apart.
        before: Zeros put before the map.
        after: Zeros put after it.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def taps(self) -> int:
        """How many positions it covers at once."""
        return prod(self.kernel)

    @property
    def plain(self) -> bool:
        """Whether it meets every position, and nothing else, once."""
        return self.taps == 1 and prod(self.stride) == 1 and not any(self.before)

    def views(self, value: Tensor) -> Iterator[Tensor]:
        """What each tap meets, position by position; in the order of the kernel's entries."""
        sides = zip(reversed(self.before), reversed(self.after), strict=True)
        padded = F.pad(value, [each for pair in sides for each in pair])
        sizes = padded.shape[padded.dim() - len(self.kernel) :]
        for tap in product(*map(range, self.kernel)):
            reaches = zip(tap, self.kernel, self.dilation, self.stride, sizes, strict=True)
            spans: Any = (slice(t * d, n - (k - 1 - t) * d, step) for t, k, d, step, n in reaches)
            yield padded[..., *spans]


@dataclass(frozen=True)
class Read(Checked):
    """The value of a node as a layer reads it.

    Attributes:
        value: The node's name.
        window: Where each tap of a kernel is an input of its own; None where a layer reads places
            one by one, or all taps are taken together.
    """

    value: str
    window: Window | None = None

    @property
    def taps(self) -> int:
        """How many inputs of the layer each place is."""
        return 1 if self.window is None else self.window.taps

    def signals(
        self, value: Tensor, axes: Axes, factor: Factor, over: Sequence[Factor] = ()
    ) -> Iterator[Tensor]:
        """Parts of a batch by unit, shape (cells, units, places·taps, samples); see `unit_signals`.

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
    if packet_of(node) not in CONVOLUTIONS:
        return None
    given = arguments(node)
    kernel = tuple(given["weight"].meta["val"].shape[2:])
    stride, dilation = (per_axis(given[name], len(kernel)) for name in ("stride", "dilation"))
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    padding = given["padding"]
    if padding == "same":
        before = tuple(r // 2 for r in reach)
        return Window(kernel, stride, dilation, before, _less(reach, before))
    sides = (0,) * len(kernel) if padding == "valid" else per_axis(padding, len(kernel))
    return Window(kernel, stride, dilation, sides, sides)


def _less(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(first, second, strict=True))
