"""What the analysis knows, and how the constraints of the rules are resolved into it.

A constraint speaks of an expression as it was when a rule read it. Once the whole graph is read,
every constraint is brought down to the factors that its expression stands for in the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import fx

from fxcompress.analysis.kinds import find_kinds
from fxcompress.axes.expressions import Axes, Concat, Edge, Expr, Factor, Product, leaves
from fxcompress.rules import Binding, Constraint, Context, Contraction, Role, Work, name_of

if TYPE_CHECKING:
    import networkx as nx

Facts = Mapping[Factor, tuple[str, ...]]
Held = tuple[str, int, Role]


@dataclass(frozen=True)
class Coupling:
    """What the analysis knows about a captured module.

    Attributes:
        axes: Axes of every node that yields one tensor, by node name.
        outputs: Axes of every node that yields several tensors.
        parameters: Axes of every parameter and buffer the graph reads, by name.
        over: What a node mixes along, by node name.
        frozen: Why a factor may not shrink.
        inexact: What mixes along a factor, so that zero-masking it is not cutting it.
        nonlinearities: What acts on each unit of a factor alone, so that only selecting units is
            exact; in words.
        acting: The nodes that do so, by name.
        kinds: What a factor is known as (heads, qk, sum …); see `fxcompress.analysis.kinds`.
        roles: The roles of a factor in parameters, as (parameter, axis, role).
        bindings: Integer arguments of nodes that follow the size of an expression.
        work: Floating-point operations as products of sizes.
        contractions: How operands made of parameters multiply values, in the graph's order.
        edges: Which factors were tied or refined, and by which node.
        labels: The parameter axis that a factor started as, as (parameter, dim).
        unknown: Ops without a rule, with the nodes that use them.
        probed: Ops without a rule of which experiments told the axes, with the nodes.
        failed: Ops whose rule raised, with "node: error" each; what they touch is frozen.
        calls: What each node calls, by node name.
        co_occurring: For each factor, the factors it never appears without.
    """

    axes: Mapping[str, Axes]
    outputs: Mapping[str, tuple[Axes, ...]]
    parameters: Mapping[str, Axes]
    over: Mapping[str, Axes]
    frozen: Facts
    inexact: Facts
    nonlinearities: Facts
    acting: Mapping[Factor, frozenset[str]]
    kinds: Facts
    roles: Mapping[Factor, frozenset[Held]]
    bindings: tuple[Binding, ...]
    work: tuple[Work, ...]
    contractions: tuple[Contraction, ...]
    edges: tuple[Edge, ...]
    labels: Mapping[Factor, tuple[str, int]]
    unknown: Mapping[str, tuple[str, ...]]
    probed: Mapping[str, tuple[str, ...]]
    failed: Mapping[str, tuple[str, ...]]
    calls: Mapping[str, str]
    co_occurring: Mapping[Factor, frozenset[Factor]] = field(repr=False)

    @cached_property
    def graph(self) -> nx.Graph[Any]:
        """Factors and parameter axes, tied by the nodes that caused it (``cause``; ``kind`` is
        same, part or axis).
        """
        import networkx as nx  # slow to import

        graph: nx.Graph[Any] = nx.Graph()
        for edge in self.edges:
            graph.add_edge(edge.first, edge.second, cause=edge.cause, kind=edge.kind)
        for factor, site in self.labels.items():
            graph.add_edge(site, factor, cause="", kind="axis")
        return graph

    @cached_property
    def windowed(self) -> frozenset[str]:
        """The weights that contract inputs over a window; a depthwise filter contracts none."""
        windows = {factor for factor, words in self.kinds.items() if "window" in words}
        moved = {
            name
            for name, axes in self.parameters.items()
            if any(leaf in windows for expr in axes for leaf in leaves(expr))
        }
        return frozenset(
            name
            for held in self.roles.values()
            for name, _, role in held
            if role == "contract" and name in moved
        )


def resolve(
    ctx: Context, parameters: Mapping[str, Axes], labels: Mapping[Factor, tuple[str, int]]
) -> Coupling:
    """Bring every constraint of `ctx` down to factors."""
    space = ctx.space
    for expr, cause in space.unalignable:
        ctx.frozen.append(
            Constraint(expr, cause, "entangled: its indices do not line up across this operation")
        )
    find_kinds(ctx)
    axes = {node.name: ctx.of(node) for node in ctx.axes if not ctx.many(node)}
    own = {name: tuple(space.resolve(expr) for expr in exprs) for name, exprs in parameters.items()}
    frozen = _facts(ctx, ctx.frozen)
    _follow(ctx, frozen)
    roles = _roles(ctx, own)
    _freeze_unowned(roles, own, frozen)
    return Coupling(
        axes=axes,
        outputs={
            node.name: tuple(tuple(map(space.resolve, axes)) for axes in ctx.axes[node])  # type: ignore[arg-type]
            for node in ctx.axes
            if ctx.many(node)
        },
        parameters=own,
        over=_over(ctx),
        frozen=frozen,
        inexact=_facts(ctx, ctx.inexact),
        nonlinearities=_facts(ctx, ctx.nonlinearities),
        acting=_nodes(ctx, ctx.nonlinearities),
        kinds=_facts(ctx, ctx.kinds, short=True),
        roles={factor: frozenset(held) for factor, held in roles.items()},
        bindings=tuple(replace(b, expr=space.resolve(b.expr)) for b in ctx.bindings),
        work=tuple(
            Work(w.node, w.coefficient, tuple(map(space.resolve, w.exprs))) for w in ctx.work
        ),
        contractions=tuple(ctx.contractions),
        edges=tuple(space.edges),
        labels=dict(labels),
        unknown={name: tuple(nodes) for name, nodes in ctx.unknown.items()},
        probed={name: tuple(nodes) for name, nodes in ctx.probed.items()},
        failed={name: tuple(nodes) for name, nodes in ctx.failed.items()},
        calls={node.name: _call(node) for node in ctx.axes},
        co_occurring=_co_occurring(axes.values(), own.values()),
    )


def _call(node: fx.Node) -> str:
    """What a node calls, and in which module of the user's where that is known."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    where = next((path for path, *_ in reversed(stack) if path), "")
    return name_of(node.target) + (f" in {where}" if where else "")


def _roles(ctx: Context, parameters: Mapping[str, Axes]) -> dict[Factor, set[Held]]:
    """Which axis of which parameter holds a factor in which role; every axis that holds it, where
    a constraint does not say.
    """
    roles: dict[Factor, set[Held]] = defaultdict(set)
    for constraint in ctx.roles:
        factors = set(ctx.space.leaves(constraint.expr))
        for name in constraint.parameters:
            for dim, expr in enumerate(parameters[name]):
                if constraint.dim in (None, dim) or len(constraint.parameters) > 1:
                    for leaf in factors.intersection(leaves(expr)):
                        roles[leaf].add((name, dim, constraint.role))
    return roles


def _over(ctx: Context) -> dict[str, Axes]:
    over: dict[str, Axes] = defaultdict(tuple)
    for constraint in ctx.inexact:
        over[constraint.node] += (ctx.space.resolve(constraint.expr),)
    return dict(over)


def _facts(
    ctx: Context, constraints: Iterable[Constraint], short: bool = False
) -> dict[Factor, tuple[str, ...]]:
    facts: dict[Factor, dict[str, None]] = defaultdict(dict)
    for constraint in constraints:
        words = constraint.words if short else f"{constraint.words} (at {constraint.node})"
        for leaf in ctx.space.leaves(constraint.expr):
            facts[leaf][words] = None
    return {leaf: tuple(words) for leaf, words in facts.items()}


def _nodes(ctx: Context, constraints: Iterable[Constraint]) -> dict[Factor, frozenset[str]]:
    nodes: dict[Factor, set[str]] = defaultdict(set)
    for constraint in constraints:
        for leaf in ctx.space.leaves(constraint.expr):
            nodes[leaf].add(constraint.node)
    return {leaf: frozenset(names) for leaf, names in nodes.items()}


def _follow(ctx: Context, frozen: dict[Factor, tuple[str, ...]]) -> None:
    """Zeros beside an axis that cannot shrink cannot either; repeat until nothing new freezes."""
    changed = True
    while changed:
        changed = False
        for expr, leader, node in ctx.follows:
            if all(leaf in frozen for leaf in ctx.space.leaves(leader)):
                for leaf in ctx.space.leaves(expr):
                    if leaf not in frozen:
                        frozen[leaf] = (f"padding of an axis that may not shrink (at {node})",)
                        changed = True


def _freeze_unowned(
    roles: Mapping[Factor, set[Held]],
    parameters: Mapping[str, Axes],
    frozen: dict[Factor, tuple[str, ...]],
) -> None:
    """A factor that no layer produces (positions of a learned table, say) is no channel."""
    made = {
        leaf
        for leaf, held in roles.items()
        if any(role in ("produce", "table") for *_, role in held)
    }
    for exprs in parameters.values():
        for leaf in (leaf for expr in exprs for leaf in leaves(expr)):
            if leaf not in made and leaf not in frozen:
                frozen[leaf] = ("no layer produces it",)


def _co_occurring(
    values: Iterable[Axes], parameters: Iterable[Axes]
) -> dict[Factor, frozenset[Factor]]:
    """For each factor d, the factors h that it never appears without, and that stand left of it
    wherever a parameter holds it.

    Then every index of h may keep units of d of its own.
    """
    common: dict[Factor, frozenset[Factor]] = {}
    for axes in values:
        present = frozenset(leaf for expr in axes for leaf in leaves(expr))
        for leaf in present:
            common[leaf] = common.get(leaf, present) & present
    for axes in parameters:
        for leaf, left in (pair for expr in axes for pair in _lefts(expr, frozenset())):
            common[leaf] = common.get(leaf, left) & left
    return {leaf: others - {leaf} for leaf, others in common.items()}


def _lefts(expr: Expr, left: frozenset[Factor]) -> Iterable[tuple[Factor, frozenset[Factor]]]:
    """Every factor of `expr` with the factors that multiply it from the left.

    A factor inside a concatenation multiplies nothing: the concatenation does, and an index of it
    lies in one part only.
    """
    if isinstance(expr, Factor):
        yield expr, left
    elif isinstance(expr, Concat):
        for part in expr.parts:
            yield from _lefts(part, left)
    elif isinstance(expr, Product):
        for part in expr.parts:
            yield from _lefts(part, left)
            left = left | frozenset(_multiplying(part))


def _multiplying(expr: Expr) -> Iterable[Factor]:
    if isinstance(expr, Factor):
        yield expr
    elif isinstance(expr, Product):
        for part in expr.parts:
            yield from _multiplying(part)
