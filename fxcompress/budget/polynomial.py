"""Quantities written out in the widths of families: a polynomial, and tables with steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

from fxcompress.analysis.cost import CostModel
from fxcompress.analysis.quantities import Quantity, Table
from fxcompress.axes.expressions import Concat, Expr, Factor, leaves

Monomial = tuple[int, ...]
"""Numbers of the families whose widths are multiplied, ascending, each as often as it occurs."""
Polynomial = Counter[Monomial]
"""Coefficients by monomial."""
_ONE: Mapping[Monomial, int] = {(): 1}


@dataclass(frozen=True, eq=False)
class Tabulated:
    """A table over sizes that depend on the widths of some families.

    Attributes:
        table: The table.
        sizes: The size of each of its axes.
        families: The numbers of the families that these sizes depend on, ascending.
    """

    table: Table
    sizes: tuple[Polynomial, ...]
    families: tuple[int, ...]

    def value(self, widths: Sequence[int] | Mapping[int, int]) -> int:
        """The value where families, by number, have these widths."""
        return self.table.at([evaluated(size, widths) for size in self.sizes])


@dataclass(frozen=True, eq=False)
class Form:
    """A quantity as the sum of a polynomial and of tables."""

    polynomial: Polynomial
    tables: tuple[Tabulated, ...] = ()

    def value(self, widths: Sequence[int]) -> int:
        """The sum where every family has its width."""
        total = evaluated(self.polynomial, widths)
        return total + sum(table.value(widths) for table in self.tables)


def form_of(quantity: Quantity, cost: CostModel, family: Mapping[Factor, int]) -> Form:
    """A quantity in the widths of families.

    Args:
        quantity: Its terms count in `unit`-ths.
        cost: Costs of the program.
        family: The number of the family whose width each variable factor has.
    """
    polynomial, tables = Counter[Monomial](), []
    for term in quantity.terms(cost):
        if isinstance(term, Table):
            sizes = tuple(_size(expr, family, cost.batch) for expr in term.exprs)
            found = {leaf for expr in term.exprs for leaf in leaves(expr)} & family.keys()
            numbers = tuple(sorted({family[leaf] for leaf in found}))
            tabulated = Tabulated(term, sizes, numbers)
            if numbers:
                tables.append(tabulated)
            else:
                polynomial[()] += tabulated.value(())
        else:
            _add(polynomial, _product(term.exprs, family, cost.batch), term.coefficient)
    return Form(polynomial, tuple(tables))


def evaluated(polynomial: Polynomial, widths: Sequence[int] | Mapping[int, int]) -> int:
    """The value of a polynomial where families, by number, have these widths."""
    return sum(
        coefficient * prod(widths[number] for number in monomial)
        for monomial, coefficient in polynomial.items()
    )


def _add(total: Polynomial, terms: Polynomial, coefficient: int) -> None:
    for monomial, count in terms.items():
        total[monomial] += coefficient * count


def _product(
    exprs: Iterable[Expr], family: Mapping[Factor, int], fixed: Mapping[Factor, int]
) -> Polynomial:
    return reduce(_times, (_size(expr, family, fixed) for expr in exprs), Counter[Monomial](_ONE))


def _size(expr: Expr, family: Mapping[Factor, int], fixed: Mapping[Factor, int]) -> Polynomial:
    if isinstance(expr, Factor):
        if expr in family:
            return Counter({(family[expr],): 1})
        return Counter({(): fixed.get(expr, expr.size)})
    if isinstance(expr, Concat):
        total = Counter[Monomial]()
        for part in expr.parts:
            _add(total, _size(part, family, fixed), 1)
        return total
    return _product(expr.parts, family, fixed)


def _times(first: Polynomial, second: Polynomial) -> Polynomial:
    out = Counter[Monomial]()
    for a, m in first.items():
        for b, n in second.items():
            out[tuple(sorted(a + b))] += m * n
    return out
