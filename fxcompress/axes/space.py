"""The operations that relate axes, and refine factors on the way.

>>> space = Space()
>>> rows = space.fresh(12, "rows")
>>> heads, dims = space.split_right(rows, 4)
>>> space.text(rows)
'(rows.0 rows.1)'
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from fxcompress.axes.expressions import (
    UNIT,
    Concat,
    Edge,
    Expr,
    Factor,
    Product,
    concat,
    leaves,
    product,
)


@dataclass
class Space:
    """The factors of one analysis and what is known about them."""

    edges: list[Edge] = field(default_factory=list)
    unalignable: list[tuple[Expr, str]] = field(default_factory=list)
    links: list[tuple[Factor, Expr | None]] = field(default_factory=list)  # as they were before
    cause: str = ""
    _count: int = 0

    def fresh(self, size: int, label: str) -> Expr:
        """A new factor, or the unit expression for size 1."""
        if size == 1:
            return UNIT
        self._count += 1
        return Factor(self._count, size, label)

    def resolve(self, expr: Expr) -> Expr:
        """`expr` with every refined factor replaced by what it became."""
        if isinstance(expr, Factor):
            return expr if expr.link is None else self._end(expr)
        for factor in expr.factors:
            if factor.link is not None:
                parts = [self.resolve(part) for part in expr.parts]
                return product(parts) if isinstance(expr, Product) else concat(parts)
        return expr

    def _end(self, factor: Factor) -> Expr:
        """What a refined factor became; every link on the way there then leads to it directly."""
        chain: list[Factor] = []
        end: Expr = factor
        while isinstance(end, Factor) and end.link is not None:
            chain.append(end)
            end = end.link
        end = end if isinstance(end, Factor) else self.resolve(end)
        for each in chain:
            self._link(each, end)
        return end

    def _link(self, factor: Factor, end: Expr) -> None:
        self.links.append((factor, factor.link))
        factor.link = end

    def leaves(self, expr: Expr) -> tuple[Factor, ...]:
        """The factors that `expr` stands for now."""
        return leaves(self.resolve(expr))

    def text(self, expr: Expr) -> str:
        """`expr` in the notation of this module."""
        expr = self.resolve(expr)
        if isinstance(expr, Factor):
            return expr.label
        inner = [self.text(part) for part in expr.parts]
        return f"({' '.join(inner)})" if isinstance(expr, Product) else f"[{' | '.join(inner)}]"

    def entangled(self, *exprs: Expr) -> None:
        """Note that `exprs` cannot be expressed in each other; their factors must not shrink."""
        self.unalignable.extend((expr, self.cause) for expr in exprs)

    def _refine(self, factor: Factor, expr: Expr) -> None:
        self._link(factor, expr)
        for leaf in leaves(expr):
            kind = "same" if leaf is expr else "part"
            self.edges.append(Edge(factor, leaf, self.cause, kind))

    def split_right(self, expr: Expr, size: int) -> tuple[Expr, Expr] | None:
        """(outer, inner) with expr = (outer inner), inner of that size; None if there is none."""
        expr = self.resolve(expr)
        if size == 1:
            return expr, UNIT
        if size == expr.size:
            return UNIT, expr
        if size == 0 or expr.size % size:
            return None
        if isinstance(expr, Factor):
            outer = self.fresh(expr.size // size, f"{expr.label}.0")
            inner = self.fresh(size, f"{expr.label}.1")
            self._refine(expr, product((outer, inner)))
            return outer, inner
        if isinstance(expr, Product):
            return self._split_product(expr, size)
        pairs = [self.split_right(part, size) for part in expr.parts]
        if any(pair is None for pair in pairs):
            return None
        done = [pair for pair in pairs if pair is not None]
        for _, inner in done[1:]:
            self.unify(done[0][1], inner)
        return concat(outer for outer, _ in done), done[0][1]

    def _split_product(self, expr: Product, size: int) -> tuple[Expr, Expr] | None:
        parts, inner = list(expr.parts), list[Expr]()
        while size > 1:
            part = parts.pop()
            if size % part.size == 0:
                inner.insert(0, part)
                size //= part.size
                continue
            pair = self.split_right(part, size)
            if pair is None:
                return None
            parts.append(pair[0])
            inner.insert(0, pair[1])
            size = 1
        return product(parts), product(inner)

    def split_at(self, expr: Expr, size: int) -> tuple[Expr, Expr] | None:
        """(left, right) with expr = [left | right], left of that size; None if there is none."""
        expr = self.resolve(expr)
        if size in (0, expr.size):
            empty = Concat(())
            return (empty, expr) if size == 0 else (expr, empty)
        if not 0 < size < expr.size:
            return None
        if isinstance(expr, Factor):
            left = self.fresh(size, f"{expr.label}.l")
            right = self.fresh(expr.size - size, f"{expr.label}.r")
            self._refine(expr, Concat((left, right)))
            return left, right
        if isinstance(expr, Product):
            lead, rest = expr.parts[0], expr.parts[1:]
            inner = prod(part.size for part in rest)
            pair = None if size % inner else self.split_at(lead, size // inner)
            return pair and (product((pair[0], *rest)), product((pair[1], *rest)))
        return self._split_concat(expr, size)

    def _split_concat(self, expr: Concat, size: int) -> tuple[Expr, Expr] | None:
        left: list[Expr] = []
        for number, part in enumerate(expr.parts):
            if size == 0:
                return concat(left), concat(expr.parts[number:])
            if size < part.size:
                pair = self.split_at(part, size)
                if pair is None:
                    return None
                return concat((*left, pair[0])), concat((pair[1], *expr.parts[number + 1 :]))
            left.append(part)
            size -= part.size
        return None

    def unify(self, first: Expr, second: Expr) -> None:
        """Make `first` and `second`, of equal size, keep the same indices from now on."""
        first, second = self.resolve(first), self.resolve(second)
        if first is second or first == second:
            return
        if first.size != second.size:
            raise ValueError(
                f"axes of {first.size} and {second.size} cannot be the same ({self.cause})"
            )
        if isinstance(first, Factor) and isinstance(second, Factor):
            # The younger becomes the older, so that a long residual stream makes no long chain.
            old, new = sorted((first, second), key=lambda factor: factor.uid)
            self._refine(new, old)
        elif isinstance(first, Factor):
            self._substitute(first, second)
        elif isinstance(second, Factor):
            self._substitute(second, first)
        elif isinstance(first, Product) and isinstance(second, Product):
            self._align(first, second)
        elif isinstance(first, Concat):
            self._cut(first, second)
        elif isinstance(second, Concat):
            self._cut(second, first)

    def _substitute(self, factor: Factor, expr: Expr) -> None:
        if any(leaf is factor for leaf in leaves(expr)):
            self.entangled(factor, expr)
        else:
            self._refine(factor, expr)

    def _align(self, first: Product, second: Product) -> None:
        """Product with product: from the right, splitting the larger of the two last parts."""
        rows, columns = list(first.parts), list(second.parts)
        while rows and columns:
            a, b = self.resolve(rows.pop()), self.resolve(columns.pop())
            if a.size == b.size:
                self.unify(a, b)
                continue
            larger, smaller, stack = (a, b, rows) if a.size > b.size else (b, a, columns)
            pair = self.split_right(larger, smaller.size)
            if pair is None:
                self.entangled(first, second)
                return
            stack.append(pair[0])
            self.unify(pair[1], smaller)

    def _cut(self, parts: Concat, other: Expr) -> None:
        """Concatenation with anything: cut the other at the boundaries, or this at the other's."""
        rest = other
        for part in parts.parts:
            rest = self.resolve(rest)
            if rest.size == part.size:
                self.unify(part, rest)
                return
            pair = self.split_at(rest, part.size)
            if pair is None:
                self.entangled(parts, other)
                return
            self.unify(part, pair[0])
            rest = pair[1]
