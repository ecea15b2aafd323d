"""What a rule works with: the axes of its operands, and the constraints it makes about them.

A rule is a function of a `Context` and a node that returns the axes of the node's output. On the
way it may refine and unify factors (through `Context.space`) and record *constraints*, which are
resolved into facts about factors once the whole graph is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx

from fxcompress.axes.expressions import Axes, Expr, Factor
from fxcompress.axes.space import Space
from fxcompress.graph.aliasing import alias_classes, mutated_inputs
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import dynamic_dims, shape_of
from fxcompress.graph.moves import axis_before
from fxcompress.graph.schema import Path, read
from fxcompress.rules.constraints import (
    Binding,
    Constraint,
    Contraction,
    Role,
    RoleConstraint,
    Work,
)

Output = Axes | tuple[Axes, ...]
Rule = Callable[["Context", fx.Node], Output]


@dataclass
class Context:
    """Axes of every node read so far, and the constraints made about them.

    Attributes:
        axes: The axes of each node, one tuple for each output.
        sources: The parameters that a node is computed from, and from nothing else.
        nonzero: The factors whose units may not be zero in a node although every parameter is
            masked with zeros there.
        failed: Operators whose rule raised, with the nodes and the errors.
        changes: What `nonzero` held before each change of it.
    """

    module: CapturedModule
    space: Space = field(default_factory=Space)
    axes: dict[fx.Node, Output] = field(default_factory=dict)
    sources: dict[fx.Node, frozenset[str]] = field(default_factory=dict)
    nonzero: dict[fx.Node, frozenset[Factor]] = field(default_factory=dict)
    frozen: list[Constraint] = field(default_factory=list)
    inexact: list[Constraint] = field(default_factory=list)
    nonlinearities: list[Constraint] = field(default_factory=list)
    kinds: list[Constraint] = field(default_factory=list)
    follows: list[tuple[Expr, Expr, str]] = field(default_factory=list)
    roles: list[RoleConstraint] = field(default_factory=list)
    bindings: list[Binding] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    unknown: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    probed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    changes: list[tuple[fx.Node, frozenset[Factor] | None]] = field(default_factory=list)

    # ---- operands

    def of(self, node: Any) -> Axes:
        """The axes of a node that yields one tensor."""
        (axes,) = self.each(node)
        return axes

    def each(self, node: Any) -> tuple[Axes, ...]:
        """The axes of every tensor that a node yields."""
        axes: Any = self.axes[node]
        every: tuple[Axes, ...] = axes if self.many(node) else (axes,)
        return tuple([tuple(map(self.space.resolve, own)) for own in every])

    def tensor(self, value: Any) -> bool:
        """Whether `value` is a node that yields one tensor."""
        return isinstance(value, fx.Node) and value in self.axes and not self.many(value)

    def many(self, node: fx.Node) -> bool:
        """Whether `node` yields several tensors."""
        axes = self.axes[node]
        return len(axes) > 0 and isinstance(axes[0], tuple)

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The example shape of a node's output."""
        return shape_of(node)

    # ---- making axes

    def fixed(self, size: int, node: fx.Node, words: str) -> Expr:
        """A new axis that can never shrink."""
        expr = self.space.fresh(size, node.name)
        self.freeze(expr, node, words)
        return expr

    def opaque(self, node: fx.Node, words: str) -> Axes:
        """Fixed axes of the shape of `node`."""
        return tuple(self.fixed(size, node, words) for size in self.shape(node))

    def free(self, node: fx.Node, words: str) -> Axes:
        """New axes of the shape of `node`, which may shrink where no input has their size."""
        dynamic = dynamic_dims(node)
        return tuple(
            self.fixed(size, node, words)
            if dim in dynamic
            else self.space.fresh(size, f"{node.name}.{dim}")
            for dim, size in enumerate(self.shape(node))
        )

    # ---- what masking parameters with zeros does not make zero

    def factors(self, exprs: Iterable[Expr]) -> frozenset[Factor]:
        """The factors of `exprs`, as refined by now."""
        return frozenset().union(*map(self.space.leaves, exprs))

    def nonzero_factors(self, operand: Any) -> frozenset[Factor]:
        """The factors whose masked units may not be zero in `operand`."""
        return self.factors(self.nonzero.get(operand, ()))

    def set_nonzero(self, node: fx.Node, exprs: Iterable[Expr]) -> None:
        """Masked units of `exprs`, and of nothing else, may not be zero in `node`."""
        self.changes.append((node, self.nonzero.get(node)))
        self.nonzero[node] = self.factors(exprs)

    def spread(self, node: fx.Node) -> None:
        """Settle where `node` is not zero: as its operands are, where its rule did not say.

        What an operation in place writes is also read through whatever shares that memory.
        """
        if node not in self.nonzero:
            self.set_nonzero(
                node, frozenset().union(*map(self.nonzero_factors, node.all_input_nodes))
            )
        if not self.nonzero[node]:
            return
        written = {self.classes[operand] for operand in mutated_inputs(node)}
        for other in self.axes if written else ():
            if self.classes[other] in written and other is not node:
                self.set_nonzero(other, self.nonzero.get(other, frozenset()) | self.nonzero[node])

    @cached_property
    def classes(self) -> dict[fx.Node, fx.Node]:
        """The nodes that may share memory, each by one that stands for all."""
        return alias_classes(self.module.graph)

    def sums(self, node: fx.Node, exprs: Iterable[Expr], operands: Iterable[Any]) -> None:
        """`node` adds up products of `operands` along `exprs`: exact where one of them is zero."""
        holders = [
            (self.factors(self.of(operand)), self.nonzero_factors(operand)) for operand in operands
        ]
        for factor in self.factors(exprs):
            if all(factor in nonzero for own, nonzero in holders if factor in own):
                self.over(factor, node, f"{node.name} adds up what masking does not make zero")

    # ---- refining, with entanglement as a constraint

    def unify(self, first: Expr, second: Expr, node: fx.Node) -> None:
        """Tie two axes of equal size because of `node`."""
        self.space.cause = node.name
        self.space.unify(first, second)

    def broadcast(self, operands: Sequence[Axes], node: fx.Node) -> Axes:
        """Tie the axes of broadcast operands, aligned at the right; size 1 ties nothing."""
        rank = max((len(axes) for axes in operands), default=0)
        out: list[Expr] = []
        for dim in range(-rank, 0):
            column = [axes[dim] for axes in operands if len(axes) >= -dim]
            wide = [expr for expr in column if expr.size != 1]
            for expr in wide[1:]:
                self.unify(wide[0], expr, node)
            out.append(self.space.resolve(wide[0]) if wide else column[0])
        return tuple(out)

    def split(self, expr: Expr, sizes: Sequence[int], node: fx.Node) -> tuple[Expr, ...]:
        """`expr` as a product of parts of `sizes`; fixed axes where there is none."""
        self.space.cause = node.name
        parts: list[Expr] = []
        rest = expr
        for size in reversed(sizes[1:]):
            pair = self.space.split_right(rest, size)
            if pair is None:
                self.entangle(node, expr)
                return tuple(self.fixed(size, node, "entangled by a reshape") for size in sizes)
            rest, inner = pair
            parts.insert(0, inner)
        return (rest, *parts)

    def cut(self, expr: Expr, sizes: Sequence[int], node: fx.Node) -> tuple[Expr, ...]:
        """`expr` as a concatenation of parts of `sizes`; fixed axes where there is none."""
        self.space.cause = node.name
        parts: list[Expr] = []
        rest = expr
        for size in sizes[:-1]:
            pair = self.space.split_at(rest, size)
            if pair is None:
                self.entangle(node, expr)
                return tuple(self.fixed(size, node, "entangled by a split") for size in sizes)
            parts.append(pair[0])
            rest = pair[1]
        return (*parts, rest)

    def entangle(self, node: fx.Node, *exprs: Expr) -> None:
        """The axes cannot be expressed in each other: none of them may shrink."""
        for expr in exprs:
            self.freeze(expr, node, "entangled: its indices do not line up across this operation")

    # ---- constraints

    def freeze(self, expr: Expr | Iterable[Expr], node: fx.Node, words: str) -> None:
        """The factors of `expr` may not shrink."""
        self._constrain(self.frozen, expr, node, words)

    def follow(self, expr: Expr, leader: Expr, node: fx.Node) -> None:
        """`expr` (zeros beside an axis, say) may shrink only where some factor of `leader` may."""
        self.follows.append((expr, leader, node.name))

    def over(self, expr: Expr | Iterable[Expr], node: fx.Node, words: str) -> None:
        """`node` mixes along `expr`: masking units with zeros is not the same as cutting them."""
        self._constrain(self.inexact, expr, node, words)

    def nonlinearity(self, expr: Expr | Iterable[Expr], node: fx.Node, words: str) -> None:
        """`node` acts on each unit of `expr` alone, so only selecting units commutes with it."""
        self._constrain(self.nonlinearities, expr, node, words)

    def kind(self, expr: Expr | Iterable[Expr], node: fx.Node, words: str) -> None:
        """The factors of `expr` are known to people as `words` (heads, qk, vo)."""
        self._constrain(self.kinds, expr, node, words)

    def _constrain(
        self, into: list[Constraint], expr: Expr | Iterable[Expr], node: fx.Node, words: str
    ) -> None:
        exprs = (expr,) if isinstance(expr, Expr) else expr
        into.extend(Constraint(each, node.name, words) for each in exprs if each.size > 1)

    def role(self, expr: Expr, operand: Any, role: Role, dim: int | None = None) -> None:
        """The parameters that `operand` is computed from hold `expr`, its axis `dim`, in `role`."""
        parameters = self.sources.get(operand, frozenset())
        if parameters and expr.size > 1:
            self.roles.append(RoleConstraint(expr, parameters, role, _parameter_dim(operand, dim)))

    def bind(self, node: fx.Node, path: Path, expr: Expr, sign: int = 1) -> None:
        """The integer argument at `path` of `node` follows the size of `expr`."""
        read(node, path)
        self.bindings.append(Binding(node.name, path, self.space.resolve(expr), sign))

    def flops(self, node: fx.Node, exprs: Axes, coefficient: int = 2) -> None:
        """`node` costs `coefficient` floating-point operations for every index of `exprs`."""
        own = tuple(map(self.space.resolve, exprs))
        self.work.append(Work(node.name, coefficient, own))


def _parameter_dim(operand: fx.Node, dim: int | None) -> int | None:
    """Which axis of the parameter axis `dim` of the operand is, through transpositions; or None."""
    while dim is not None and operand.all_input_nodes:
        dim = axis_before(operand, dim)
        operand = operand.all_input_nodes[0]
    return dim
