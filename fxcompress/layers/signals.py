"""Where a tensor of a graph carries the units of a group."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from fxcompress.arguments import checked
from fxcompress.axes.expressions import Axes, Expr, Factor, leaves, product
from fxcompress.axes.transforms import cell_numbers, coordinates
from fxcompress.errors import PlanError


@checked(PlanError)
def unit_signals(
    value: Tensor,
    axes: Axes,
    factor: Factor,
    over: Sequence[Factor] = (),
    dim: int | None = None,
) -> Tensor:
    """A tensor's entries by unit, shape (cells, units, places, samples).

    A unit's *places* are those beside it on its own axis: the positions of a flattened map, the
    dims of a head, the queries that share a key. All other axes are samples.

    Args:
        value: Sizes of axes that hold no unit may differ from those of `axes`.
        axes: What the analysis says of it.
        factor: The group's.
        over: The factors that number the group's cells, on the same axis or on others.
        dim: The axis that holds the units; None for the only one that does.

    Raises:
        PlanError: The tensor does not hold the units, or holds them on several axes.
    """
    held = [number for number, expr in enumerate(axes) if factor in leaves(expr)]
    if dim is None and len(held) != 1:
        raise PlanError(
            f"a value of shape {tuple(value.shape)} holds {factor.label} on {len(held)} axes, "
            "not on one; leave the group out with exclude="
        )
    if value.dim() != len(axes) or (dim is not None and dim not in held):
        raise PlanError(
            f"value or dim: a value of shape {tuple(value.shape)} does not hold {factor.label} on "
            f"axis {dim} of {len(axes)}"
        )
    own = held[0] if dim is None else dim
    if value.shape[own] != axes[own].size:
        raise PlanError(
            f"value has {value.shape[own]} entries on axis {own}, where {factor.label} lies; the "
            f"analysis says {axes[own].size}"
        )
    dims = [*_numbering(axes, own, over), own]
    expr = product(axes[number] for number in dims)
    rows = value.movedim(dims, tuple(range(len(dims)))).flatten(0, len(dims) - 1)
    rows = rows.reshape(expr.size, -1)
    at = coordinates(expr)
    places = torch.nonzero(at[factor] >= 0).flatten()
    number = cell_numbers(over, {f: at[f][places] for f in over}).expand(len(places))
    order = torch.argsort(number * factor.size + at[factor][places], stable=True)
    picked = rows[places[order].to(value.device)]
    beside = _beside(axes[own], factor, over)
    aligned = picked.reshape(prod(f.size for f in over), factor.size, -1, beside, rows.shape[1])
    return aligned.transpose(2, 3).flatten(3)


def _numbering(axes: Axes, own: int, over: Sequence[Factor]) -> list[int]:
    """The other axes that hold factors of `over`."""
    missing = set(over) - set(leaves(axes[own]))
    found = (next(n for n, expr in enumerate(axes) if f in leaves(expr)) for f in missing)
    return sorted(set(found))


@checked(PlanError)
def places_of(axes: Axes, factor: Factor, over: Sequence[Factor] = ()) -> int:
    """How many places each unit has on the axis that holds it."""
    held = [expr for expr in axes if factor in leaves(expr)]
    if not held:
        raise PlanError(f"factor: {factor.label} lies on none of the axes {axes}")
    return _beside(held[0], factor, over)


def _beside(expr: Expr, factor: Factor, over: Sequence[Factor]) -> int:
    """How many places each unit of each cell takes on its own axis."""
    units = factor.size * prod(f.size for f in over if f in leaves(expr))
    return int((coordinates(expr)[factor] >= 0).sum()) // units
