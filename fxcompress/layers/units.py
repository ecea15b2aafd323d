"""Where the units of a group lie in a tensor: one view for weights, gradients and signals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fxcompress.axes.coordinates import along, cell_numbers, coordinates, occurrences
from fxcompress.axes.expressions import Axes, Concat, Expr, Factor, leaves
from fxcompress.errors import PlanError


@dataclass(frozen=True, eq=False)
class Units:
    """The units of a group on one axis of a tensor.

    A unit has a *position* for each time that it stands on that axis: one as a channel, one for
    each pixel of a flattened map, one for each dim as a head. What the other axes hold at a
    position are its *entries*.

    Attributes:
        dims: The axis that holds the units, and the other axes that number the index sets.
        index: Where the units lie on these axes, flattened in this order; shape
            (index sets, units, positions, indices of the other axes beside those that number).
    """

    dims: tuple[int, ...]
    index: Tensor

    @property
    def positions(self) -> int:
        """How many positions each unit has."""
        return self.index.shape[2]

    def read(self, value: Tensor) -> Tensor:
        """The entries of the units, shape (index sets, units, positions, entries).

        Args:
            value: The tensor; sizes of axes that are not in `dims` do not matter.
        """
        front = tuple(range(len(self.dims)))
        rows = value.movedim(self.dims, front).flatten(0, front[-1])
        rows = rows.reshape(len(rows), -1)
        return rows[self.index.to(value.device)].flatten(3)

    def write(self, value: Tensor, entries: Tensor) -> Tensor:
        """A copy of `value` with other entries of the units.

        Args:
            value: The tensor.
            entries: As `read` gives them; positions and entries may be one axis.
        """
        new = value.contiguous().flatten().clone()
        at = self.entries_in(value)
        new[at] = entries.reshape(at.shape).to(new)
        return new.reshape(value.shape)

    def entries_in(self, value: Tensor) -> Tensor:
        """Where the entries lie in the flat tensor, of the shape that `read` gives."""
        numbers = torch.arange(value.numel(), device=value.device)
        return self.read(numbers.reshape(value.shape))


def units_on(
    axes: Axes, dim: int, factor: Factor, over: Sequence[Factor] = (), part: int | None = None
) -> Units:
    """The units that lie on axis `dim` of a tensor.

    Args:
        axes: The tensor's.
        dim: An axis that holds the units.
        factor: The group's.
        over: The factors that number its index sets, on the same axis or on others.
        part: Which part of the axis counts, where it is a concatenation; None for all.

    Raises:
        PlanError: A factor of `over` is on no axis.
    """
    expr, start = _part(axes[dim], part)
    own = (*axes[:dim], expr, *axes[dim + 1 :])
    dims = _numbering(own, dim, over) if factor in leaves(expr) else (dim,)
    sizes = [own[each].size for each in dims]
    found = [
        _index(own, dims, factor, unit, over).unflatten(2, (-1, _beside(own, dims, over)))
        for unit in occurrences(expr, factor)
    ]
    return Units(dims, torch.cat(found, 2) + start * prod(sizes[1:]))


def _part(expr: Expr, part: int | None) -> tuple[Expr, int]:
    """One part of an axis, and where it begins."""
    if part is None or not isinstance(expr, Concat):
        return expr, 0
    return expr.parts[part], sum(before.size for before in expr.parts[:part])


def _numbering(axes: Axes, dim: int, over: Sequence[Factor]) -> tuple[int, ...]:
    """`dim` and the other axes that number the index sets: `dim` for each factor that it holds."""
    dims = [dim]
    for other in over:
        holders = [place for place, expr in enumerate(axes) if other in leaves(expr)]
        if not holders:
            raise PlanError(f"index sets are over {other}, which is on none of the axes {axes}")
        dims.append(dim if dim in holders else holders[0])
    return tuple(dict.fromkeys(dims))


def _beside(axes: Axes, dims: Sequence[int], over: Sequence[Factor]) -> int:
    """How many indices of the numbering axes, the units' own aside, are of one index set."""
    sizes = prod(axes[dim].size for dim in dims[1:])
    return sizes // prod(f.size for f in over if f not in leaves(axes[dims[0]]))


def _index(
    axes: Axes, dims: Sequence[int], factor: Factor, unit: Tensor, over: Sequence[Factor]
) -> Tensor:
    """The flat places of each unit on the axes `dims`, sorted by index set and unit."""
    sizes = [axes[dim].size for dim in dims]
    units = _spread(unit, 0, sizes)
    at: dict[Factor, Tensor] = {}
    for place, dim in reversed(list(enumerate(dims))) if over else ():
        at |= {f: _spread(own, place, sizes) for f, own in coordinates(axes[dim]).items()}
    held = torch.stack([units, *(at[other] for other in over)]).amin(0) >= 0
    places = held.nonzero().flatten()
    number = cell_numbers(over, {f: at[f][places] for f in over}).expand(len(places))
    order = torch.argsort(number * factor.size + units[places], stable=True)
    return places[order].reshape(prod(f.size for f in over), factor.size, -1)


def _spread(line: Tensor, number: int, sizes: Sequence[int]) -> Tensor:
    """The values along axis `number` at every place of a row-major array of these sizes."""
    return along(line, number, len(sizes)).expand(*sizes).reshape(-1)
