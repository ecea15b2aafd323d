"""Where the indices of factors stand on the axes of a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fxcompress.axes.expressions import Expr, Factor, Product


def coordinates(expr: Expr) -> dict[Factor, Tensor]:
    """For each factor of `expr`, which of its indices stands at each place; -1 where none does."""
    if isinstance(expr, Factor):
        return {expr: torch.arange(expr.size)}
    own = [coordinates(part) for part in expr.parts]
    found: dict[Factor, Tensor] = {}
    before = 1 if isinstance(expr, Product) else 0
    for part, places in zip(expr.parts, own, strict=True):
        for factor, index in places.items():
            if isinstance(expr, Product):
                after = expr.size // before // part.size
                spread = index.repeat_interleave(after).repeat(before)
            else:
                spread = torch.full((expr.size,), -1)
                spread[before : before + part.size] = index
            found[factor] = torch.maximum(found[factor], spread) if factor in found else spread
        before = before * part.size if isinstance(expr, Product) else before + part.size
    return found


def cell_numbers(over: Sequence[Factor], coordinates: Mapping[Factor, Tensor]) -> Tensor:
    """The number of the cell at each place, from the indices of the factors it is over."""
    number: Tensor = torch.zeros(1, dtype=torch.int64)
    for factor in over:
        number = number * factor.size + coordinates[factor]
    return number


def along(values: Tensor, dim: int, rank: int) -> Tensor:
    """A line of values as a tensor of this rank whose only long axis is `dim`."""
    return values.reshape((1,) * dim + (-1,) + (1,) * (rank - dim - 1))


def occurrences(expr: Expr, factor: Factor) -> list[Tensor]:
    """For each time `factor` stands in `expr`, which index it has at each place; -1 for none.

    Parts of a concatenation do not overlap, so their occurrences share one tensor.
    """
    if isinstance(expr, Factor):
        return [torch.arange(expr.size)] if expr is factor else []
    found: list[Tensor] = []
    before = 1 if isinstance(expr, Product) else 0
    for part in expr.parts:
        own = occurrences(part, factor)
        if isinstance(expr, Product):
            after = expr.size // before // part.size
            found += [index.repeat_interleave(after).repeat(before) for index in own]
            before *= part.size
            continue
        for number, index in enumerate(own):
            if number == len(found):
                found.append(torch.full((expr.size,), -1))
            found[number][before : before + part.size] = index
        before += part.size
    return found
