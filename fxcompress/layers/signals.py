"""The entries of values and weights by the units of a group."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fxcompress.arguments import checked
from fxcompress.axes.expressions import Axes, Factor, leaves
from fxcompress.errors import PlanError
from fxcompress.layers.units import units_on


@checked(PlanError)
def unit_signals(
    value: Tensor,
    axes: Axes,
    factor: Factor,
    over: Sequence[Factor] = (),
    dim: int | None = None,
) -> Tensor:
    """A tensor's entries by unit, shape (index sets, units, positions, samples).

    A unit's *positions* are those beside it on its own axis: the pixels of a flattened map, the
    dims of a head, the queries that share a key. All other axes are samples.

    Args:
        value: Sizes of axes that hold no unit may differ from those of `axes`.
        axes: What the analysis says of it.
        factor: The group's.
        over: The factors that number the group's index sets, on the same axis or on others.
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
    return units_on(axes, own, factor, over).read(value)


@checked(PlanError)
def places_of(axes: Axes, factor: Factor, over: Sequence[Factor] = ()) -> int:
    """How many positions each unit has on the axis that holds it."""
    held = [dim for dim, expr in enumerate(axes) if factor in leaves(expr)]
    if not held:
        raise PlanError(f"factor: {factor.label} lies on none of the axes {axes}")
    return units_on(axes, held[0], factor, over).positions
