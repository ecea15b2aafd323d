"""Random axis expressions and random choices of what stays, for laws about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from fxcompress.axes.expressions import UNIT, Axes, Concat, Expr, Factor, concat, leaves, product
from fxcompress.axes.space import Space
from fxcompress.axes.transforms import Choice, Choices


@st.composite
def expressions(draw: st.DrawFn, space: Space, size: int, depth: int = 2) -> Expr:
    """An expression of `size` over new factors of `space`."""
    form = draw(st.sampled_from(("factor", "product", "concat"))) if depth else "factor"
    if size < 2 or form == "factor":
        return space.fresh(size, f"f{draw(st.integers(0, 99))}")
    if form == "product":
        outer = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
        sizes = (outer, size // outer)
        return product(draw(expressions(space, n, depth - 1)) for n in sizes)
    left = draw(st.integers(1, size - 1))
    return concat(draw(expressions(space, n, depth - 1)) for n in (left, size - left))


@st.composite
def kept(draw: st.DrawFn, size: int) -> Tensor:
    """Some sorted indices below `size`, at least one."""
    chosen = draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=size))
    return torch.tensor(sorted(chosen))


@st.composite
def selections(draw: st.DrawFn, exprs: Iterable[Expr]) -> Choices:
    """A random selection for every factor of resolved expressions."""
    factors = dict.fromkeys(leaf for expr in exprs for leaf in leaves(expr))
    return {factor: Choice(draw(kept(factor.size))) for factor in factors}


def is_normal(expr: Expr) -> bool:
    """Whether products and concatenations are flat and none has a single part."""
    if isinstance(expr, Factor) or expr == UNIT:
        return True
    empty = isinstance(expr, Concat) and not expr.parts
    nested = any(type(part) is type(expr) for part in expr.parts)
    return empty or (len(expr.parts) > 1 and not nested and all(map(is_normal, expr.parts)))


SIZES = st.sampled_from((1, 2, 3, 4, 6, 8, 12))


def factors(*sizes: int) -> tuple[Factor, ...]:
    space = Space()
    made = [space.fresh(size, f"f{number}") for number, size in enumerate(sizes)]
    return tuple(factor for factor in made if isinstance(factor, Factor))


@st.composite
def cell_choices(draw: st.DrawFn, factor: Factor, over: Sequence[Factor]) -> Choice:
    """A selection of its own, of equal length, for every cell."""
    cells = 1
    for other in over:
        cells *= other.size
    width = draw(st.integers(1, factor.size))
    rows = [draw(st.permutations(range(factor.size)))[:width] for _ in range(cells)]
    return Choice(torch.tensor(rows), tuple(over))


@st.composite
def tensors_with_axes(draw: st.DrawFn, rank: int = 2) -> tuple[Tensor, Axes]:
    space = Space()
    axes = tuple(draw(expressions(space, draw(SIZES))) for _ in range(rank))
    shape = [expr.size for expr in axes]
    return torch.randn(shape, dtype=torch.float64), axes
