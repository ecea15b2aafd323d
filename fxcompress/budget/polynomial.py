"""Costs written out as polynomials in the widths of families."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import reduce

from fxcompress.analysis.cost import CostModel
from fxcompress.axes.expressions import Concat, Expr, Factor

Monomial = tuple[int, ...]
"""Numbers of the families whose widths are multiplied, ascending, each as often as it occurs."""
Polynomial = Counter[Monomial]
"""Coefficients by monomial."""
_ONE: Mapping[Monomial, int] = {(): 1}


def cost_polynomials(cost: CostModel, family: Mapping[Factor, int]) -> dict[str, Polynomial]:
    """FLOPs, parameters and bytes as polynomials.

    Args:
        cost: Costs of the program.
        family: The number of the family whose width each variable factor has.
    """
    flops, params, size = Counter[Monomial](), Counter[Monomial](), Counter[Monomial]()
    for work in cost.work:
        _add(flops, _product(work.exprs, family, cost.batch), work.coefficient)
    for one in cost.stored:
        numel = _product(one.axes, family, cost.batch)
        if not one.axes:  # no node reads it, so its axes are not known
            numel = Counter[Monomial]({(): one.numel})
        _add(params, numel, int(one.trainable))
        _add(size, numel, one.itemsize)
    return {"flops": flops, "params": params, "bytes": size}


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
