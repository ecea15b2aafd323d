"""The positions that the kernel of a convolution covers, forward or transposed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fxcompress.graph.metadata import shape_of
from fxcompress.graph.schema import per_axis


@dataclass(frozen=True)
class Window:
    """The positions that a kernel covers, as it moves over a map.

    Attributes:
        kernel: Its extent along each axis of positions, the last axes of the map.
        stride: How far it moves.
        dilation: How far its taps are apart.
        before: Zeros put before the map; entries taken away there where negative.
        after: Zeros put after it.
        upsampling: How far apart the entries of the map are put first, with zeros between them, and
            with the taps in reverse order: a transposed convolution. Empty for a forward one.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    upsampling: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        """How many positions it covers at once."""
        return prod(self.kernel)

    @property
    def plain(self) -> bool:
        """Whether it meets every position, and nothing else, once."""
        return self.taps == 1 and prod(self.stride) == 1 and not self.meets_zeros

    @property
    def meets_zeros(self) -> bool:
        """Whether some taps meet zeros that are not of the map: at its border, or between entries
        that a transposed convolution puts apart.
        """
        return any((*self.before, *self.after)) or prod(self.upsampling) > 1

    def views(self, value: Tensor) -> Iterator[Tensor]:
        """What each tap meets, position by position; in the order of the kernel's entries."""
        if self.upsampling:
            value = _spread(value, self.upsampling)
        sides = zip(reversed(self.before), reversed(self.after), strict=True)
        padded = F.pad(value, [each for pair in sides for each in pair])
        sizes = padded.shape[padded.dim() - len(self.kernel) :]
        for tap in product(*map(range, self.kernel)):
            own = self._mirrored(tap) if self.upsampling else tap
            reaches = zip(own, self.kernel, self.dilation, self.stride, sizes, strict=True)
            spans: Any = (slice(t * d, n - (k - 1 - t) * d, step) for t, k, d, step, n in reaches)
            yield padded[..., *spans]

    def _mirrored(self, tap: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(k - 1 - t for t, k in zip(tap, self.kernel, strict=True))


def forward_window(named: Mapping[str, Any]) -> Window:
    """The window of a convolution, from the arguments of its node by name."""
    kernel, stride, dilation = _moves(named)
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    padding = named["padding"]
    if padding == "same":
        before = tuple(r // 2 for r in reach)
        return Window(kernel, stride, dilation, before, _less(reach, before))
    sides = (0,) * len(kernel) if padding == "valid" else per_axis(padding, len(kernel))
    return Window(kernel, stride, dilation, sides, sides)


def transposed_window(named: Mapping[str, Any]) -> Window:
    """The window of a transposed convolution: of the forward one over its map put apart by the
    stride, with the kernel mirrored (Dumoulin and Visin, 2016, relationship 14).
    """
    kernel, stride, dilation = _moves(named)
    rank = len(kernel)
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    before = _less(reach, per_axis(named["padding"], rank))
    more = per_axis(named["output_padding"], rank)
    after = tuple(b + m for b, m in zip(before, more, strict=True))
    return Window(kernel, (1,) * rank, dilation, before, after, stride)


def _moves(named: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Kernel, stride and dilation, a number for each axis."""
    kernel = shape_of(named["weight"])[2:]
    stride, dilation = (per_axis(named[name], len(kernel)) for name in ("stride", "dilation"))
    return kernel, stride, dilation


def _less(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(first, second, strict=True))


def _spread(value: Tensor, steps: tuple[int, ...]) -> Tensor:
    """The map with its entries `steps` apart along its last axes, and zeros between them."""
    lead, sizes = value.shape[: -len(steps)], value.shape[-len(steps) :]
    wide = [(size - 1) * step + 1 for size, step in zip(sizes, steps, strict=True)]
    out = value.new_zeros(*lead, *wide)
    spans: Any = [slice(None, None, step) for step in steps]
    out[..., *spans] = value
    return out
