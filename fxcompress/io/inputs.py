"""Example inputs without their values: what it takes to draw others of the same kind.

Inputs may be someone's data, so a file holds their shapes, types and ranges. Integers are drawn
from the range seen, so they index the tables that those seen did. What looks like a mask (booleans,
and floats that are infinite or so large that sums overflow) is the value that lets everything
through, or the one seen most.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_LARGE = 1e6
_MANY = 2**26
"""Inputs of more elements are one value, seen everywhere, that takes no memory."""

Number = bool | int | float


@dataclass(frozen=True)
class Drawn:
    """Stands for an example input.

    Attributes:
        shape: Its sizes.
        dtype: Its element type; parts of complex numbers are drawn apart.
        low: The smallest value.
        high: The largest; both occur.
        seed: For the values between them.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: Number
    high: Number
    seed: int

    @classmethod
    def of(cls, tensor: Tensor, seed: int) -> Self:
        """What to draw instead of `tensor`."""
        own = tensor.detach().cpu()
        flat = torch.view_as_real(own) if own.is_complex() else own
        return cls(tuple(own.shape), own.dtype, *_range(flat.flatten()), seed)

    def draw(self) -> Tensor:
        """A tensor on the CPU; the same every time."""
        count = torch.Size(self.shape).numel()
        if count > _MANY or count == 0 or self.low == self.high or self.dtype == torch.bool:
            low = complex(self.low, self.low) if self.dtype.is_complex else self.low
            value = torch.tensor(low).to(self.dtype).expand(self.shape)
            return value if count > _MANY else value.clone(memory_format=torch.contiguous_format)
        if self.dtype.is_complex:
            parts = self._between(2 * count).to(self.dtype.to_real())
            return torch.view_as_complex(parts.reshape(*self.shape, 2))
        return self._between(count).to(self.dtype).reshape(self.shape)

    def _between(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        low, high = self.low, self.high
        if isinstance(low, int) and isinstance(high, int):
            values = torch.randint(low, max(high, low + 1), (count,), generator=generator)
        else:
            values = torch.rand(count, generator=generator, dtype=torch.float64)
            values = (low + (high - low) * values).clamp(low, high)
        values[0] = low
        values[-1] = high if count > 1 else low
        return values


def without_values(inputs: Any, seed: int) -> Any:
    """`inputs` with a `Drawn` for each tensor among them."""
    seeds = itertools.count(seed)
    return pytree.tree_map_only(Tensor, lambda tensor: Drawn.of(tensor, next(seeds)), inputs)


def _range(values: Tensor) -> tuple[Number, Number]:
    if not values.numel():
        return (0.0, 0.0) if values.is_floating_point() else (0, 0)
    if values.dtype == torch.bool:
        seen = bool(2 * int(values.sum()) >= values.numel())
        return seen, seen
    if not values.is_floating_point():
        return int(values.min()), int(values.max())
    exact = values.double()
    usual = exact[exact.isfinite() & (exact.abs() < _LARGE)]
    if len(usual) == len(exact):
        return float(exact.min()), float(exact.max())
    kept = float(usual.max()) if len(usual) else float(exact.mode().values)
    return kept, kept
