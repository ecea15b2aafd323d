"""What a budget may bound: a registry of quantities, each a sum of terms over sizes of axes.

A term is a product of sizes (`PerIndex`: a sum of them is a polynomial in the widths of groups) or
a table over sizes with steps (`Table`), as a runtime has that pads channels to blocks. From these
forms follow the value for any widths, the allocation by integer programming, the rows of a report
and the names that `Budget` knows. Another quantity is registered from any file::

    register(Quantity("blocks", "blocks of eight", terms=...))
    Budget(quantities={"blocks": 0.5})

What depends on a target, such as a latency, is one quantity for each target, named
``latency:<target>``: its terms are tables of what was measured there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fxcompress.arguments.registry import Registry
from fxcompress.axes.expressions import Axes, Factor
from fxcompress.axes.transforms import size_of
from fxcompress.errors import BudgetError

if TYPE_CHECKING:
    from fxcompress.analysis.cost import CostModel

Widths = Mapping[Factor, int]


@dataclass(frozen=True)
class PerIndex:
    """`coefficient` for every index of `exprs`."""

    coefficient: int
    exprs: Axes = ()

    def value(self, widths: Widths) -> int:
        """The term where factors have these widths."""
        return self.coefficient * prod(size_of(expr, widths) for expr in self.exprs)


@dataclass(frozen=True, eq=False)
class Table:
    """A value for the sizes of `exprs`, constant between the steps.

    Attributes:
        exprs: The axes whose sizes count.
        steps: For each of them ascending sizes. A size counts as the next step that is not below
            it, as runtimes pad; the last is at least the size the axis has now.
        values: Whole numbers, one for each combination of steps: of shape ``(len(steps[0]), …)``.
            A quantity in fractions takes a smaller unit, nanoseconds for milliseconds, so that
            sums are exact.
    """

    exprs: Axes
    steps: tuple[tuple[int, ...], ...]
    values: NDArray[np.integer[Any]]

    def __post_init__(self) -> None:
        shape = tuple(map(len, self.steps))
        if len(self.steps) != len(self.exprs) or self.values.shape != shape:
            raise BudgetError(
                f"a table over {len(self.exprs)} axes with {shape} steps has values of shape "
                f"{self.values.shape}; give one value for each combination of steps"
            )
        for expr, own in zip(self.exprs, self.steps, strict=True):
            if list(own) != sorted(set(own)) or own[-1] < expr.size:
                raise BudgetError(
                    f"the steps {own} of a table must ascend and reach {expr.size}, the size of "
                    f"the axis {expr}"
                )

    def value(self, widths: Widths) -> int:
        """The term where factors have these widths."""
        return self.at([size_of(expr, widths) for expr in self.exprs])

    def at(self, sizes: Sequence[int]) -> int:
        """The value for sizes of the axes."""
        place = tuple(bisect_left(own, n) for own, n in zip(self.steps, sizes, strict=True))
        return int(self.values[place])


Term = PerIndex | Table


@dataclass(frozen=True)
class Quantity:
    """Something a model has more or less of, depending on the widths of its groups.

    Attributes:
        name: What `Budget`, `Cost` and the report call it.
        title: The same in the tables of reports.
        terms: Gives the terms for a program's costs. They count in `unit`-ths.
        unit: How many of the terms' own unit make one; what is left over is dropped.
    """

    name: str
    title: str
    terms: Callable[[CostModel], Iterable[Term]]
    unit: int = 1

    def most(self, limit: int) -> int:
        """The largest sum of the terms with which the quantity is at most `limit`."""
        return self.unit * limit + self.unit - 1


def register(quantity: Quantity) -> Quantity:
    """Make a quantity known; one of the same name is replaced."""
    return _REGISTRY.add(quantity)


def unregister(name: str) -> None:
    """Forget a quantity."""
    _REGISTRY.remove(name)


def quantities() -> Mapping[str, Quantity]:
    """All quantities by name, those of the package first, in the order of a report's rows."""
    return dict(_REGISTRY)


def quantity(name: str) -> Quantity:
    """The quantity of this name.

    Raises:
        BudgetError: There is none; the message has the nearest.
    """
    return _REGISTRY[name]


def _parameters(model: CostModel) -> Iterable[Term]:
    return (one.term() for one in model.stored if one.trainable)


def _flops(model: CostModel) -> Iterable[Term]:
    return (PerIndex(work.coefficient, work.exprs) for work in model.work)


def _bytes(model: CostModel) -> Iterable[Term]:
    return (one.size() for one in model.stored)


_REGISTRY = Registry(
    "quantity",
    "quantities",
    BudgetError,
    (
        Quantity("params", "parameters", _parameters),
        Quantity("flops", "FLOPs", _flops),
        Quantity("macs", "MACs", _flops, unit=2),  # a multiply and an add are two operations
        Quantity("bytes", "bytes", _bytes),
    ),
)
BUILT_IN = tuple(_REGISTRY)
"""The quantities that every report has."""
